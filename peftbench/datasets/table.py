"""`table:FILE.csv`: anybody's own images, listed in a table with a line an image.

    image,label,split,group
    scans/001.png,benign,train,patient 1

`image` is relative to the table's folder; `split` (train, val, test) and `group` (what may never cross parts) may be
left out; DICOM files that state patients are then grouped by them. Commas, semicolons or tabs separate the columns;
others beside these four are not read. Several labels an image, `effusion|mass`, need a description
(`datasets/NAME.toml`) that says `task = "multi_label"`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench.core.contract import DatasetCard, Part, Splits
from peftbench.data import dicom
from peftbench.datasets import _own
from peftbench.errors import DataError, MissingDataError, SplitError

LONGEST = 1000  # characters of a cell: what holds more is no name, and floods an error


@dataclass(frozen=True)
class Line:
    """An image of the table."""

    image: str
    label: str
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class Table:
    """The images that the table `path` lists: what follows the colon, relative to the working folder or `~`."""

    path: str

    @property
    def file(self) -> Path:
        """The table itself."""
        return _own.resolve_path(self.path)

    @property
    def card(self) -> DatasetCard:
        """Its classes are the labels; raises as `load` does."""
        lines = lines_of(self.file)
        return DatasetCard(
            title=f"table {self.file.name}",
            modality="unknown",
            classes=classes_of(lines),
            licence="the user's own",
            source="a table of the user's",
            group_key=key_of(self.file, lines),
        )

    def load(self, root: Path, seed: int) -> Splits:  # noqa: ARG002  a path is no matter of the data folder
        """Read the table, cut off what parts are missing.

        Raises MissingDataError (no table, images that are not there), DataError (a line that cannot be used) and
        SplitError (a class that training lacks).
        """
        card = self.card
        return _own.make_splits(read(self.file, card.classes), card, seed)


def lines_of(file: Path, *, several: bool = False) -> list[Line]:
    """The lines of a table; a split's other names are made one. With `several` labels an image, it may have none.

    Raises MissingDataError and DataError.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise MissingDataError(f"{file} {what}; give a table with the columns image and label: table:FILE.csv.")
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is no table in UTF-8 ({error}); save it as CSV.") from None
    if broken := next((row for row in rows for cell in row if "\n" in cell or "\r" in cell), None):
        raise DataError(f"{file}: a cell in the line of {broken[0][:60]!r} holds a line break; close its quotes.")
    columns = [name.strip().lower() for name in rows[0]] if rows else []
    if longer := next((row for row in rows[1:] if any(cell.strip() for cell in row[len(columns) :])), None):
        what = f"the line of {longer[0][:60]!r} holds more cells than the first line"
        raise DataError(f"{file}: {what}; put quotes around a cell that holds a separator.")
    if twice := [key for key in ("image", "label", "split", "group") if columns.count(key) > 1]:
        raise DataError(f"{file} holds the column {twice[0]} twice; remove one.")
    named = [dict(zip(columns, row, strict=False)) for row in rows[1:] if row]
    if not named or not {"image", "label"} <= set(columns):
        wants = "must hold the columns image and label and a line an image"
        raise DataError(f"{file} {wants}; see `peftbench show dataset table`.")
    lines = [Line(*(row.get(key, "").strip() for key in ("image", "label", "split", "group"))) for row in named]
    _refuse_gaps(file, lines, several=several)
    return [Line(line.image, line.label, _own.NAMES.get(line.split.lower(), ""), line.group) for line in lines]


def classes_of(lines: Sequence[Line]) -> tuple[str, ...]:
    """The labels in sorted order, numbers as numbers."""
    found = sorted({label for line in lines for label in labels_of(line)})
    return tuple(sorted(found, key=int) if all(label.isdecimal() for label in found) else found)


def key_of(file: Path, lines: Sequence[Line]) -> str:
    """What groups the images: the column, without one the patients that DICOM files state, else nothing."""
    if lines[0].group:
        return "group"
    return _own.PATIENT if dicom.states_patients([file.parent / line.image for line in lines]) else ""


def labels_of(line: Line) -> list[str]:
    """What stands between the bars of `effusion|mass`."""
    return [label.strip() for label in line.label.split("|") if label.strip()]


def read(file: Path, classes: tuple[str, ...], *, several: bool = False) -> _own.Given:
    """The images of a table, their labels numbered as in `classes`, or `several` each as 0 and 1 (n, classes)."""
    lines = lines_of(file, several=several)
    if unknown := sorted(set(classes_of(lines)) - set(classes)):
        raise DataError(f"{file} holds the label {unknown[0]!r}, which is none of {', '.join(classes)}; mend one.")
    _refuse_missing(file, lines)
    given = _given(file.parent, lines, classes, several=several)
    return _own.grouped_by_patient(given) if key_of(file, lines) == _own.PATIENT else given


def _given(home: Path, lines: Sequence[Line], classes: tuple[str, ...], *, several: bool) -> _own.Given:
    """The images by part. Raises SplitError where parts are given and train is none of them."""
    splits = list(dict.fromkeys(line.split for line in lines))
    if splits in (["train"], [""]):
        return _own.Given(classes, {"all": _part(home, lines, classes, several=several)})
    if "train" not in splits:
        raise SplitError(f"The table in {home} holds no image of the split train; add some.")
    by_part = {part: [line for line in lines if line.split == part] for part in splits}
    return _own.Given(classes, {p: _part(home, own, classes, several=several) for p, own in by_part.items()})


def _separator(text: str) -> str:
    """Whichever of the three the first line holds most."""
    first = text.partition("\n")[0]
    return max((",", ";", "\t"), key=first.count)


def _part(home: Path, lines: Sequence[Line], classes: tuple[str, ...], *, several: bool) -> Part:
    names = tuple(line.image for line in lines)
    groups = tuple(line.group or line.image for line in lines)
    told = np.asarray([[label in labels_of(line) for label in classes] for line in lines], np.int64)
    return Part([home / name for name in names], told if several else told.argmax(axis=1), names, groups)


def _refuse_gaps(file: Path, lines: Sequence[Line], *, several: bool) -> None:
    """Raise DataError for what stands in some lines only, for splits of no known name and for doubles."""
    seen: set[str] = set()
    for number, line in enumerate(lines, start=2):
        if any(len(cell) > LONGEST for cell in vars(line).values()):
            raise DataError(f"{file}, line {number}: a cell holds over {LONGEST} characters; mend or remove the line.")
        if len(labels_of(line)) > 1 and not several:
            raise DataError(
                f"{file}, line {number}: several labels an image need a description that says "
                'task = "multi_label" (datasets/NAME.toml); keep one label, or write it.'
            )
        if not line.image or not (labels_of(line) or several):
            raise DataError(f"{file}, line {number}: an image and one label are needed; fill or remove the line.")
        if line.split and line.split.lower() not in _own.NAMES:
            raise DataError(f"{file}, line {number}: the split {line.split!r} is none of train, val and test.")
        for key in ("split", "group"):
            if bool(getattr(line, key)) != bool(getattr(lines[0], key)):
                raise DataError(f"{file}, line {number}: some lines state a {key} and some do not; fill all or none.")
        if line.image in seen:
            raise DataError(f"{file}, line {number}: the image {line.image!r} stands there twice; remove a line.")
        seen.add(line.image)


def _refuse_missing(file: Path, lines: Sequence[Line]) -> None:
    missing = [line.image for line in lines if not os.path.isfile(file.parent / line.image)]  # noqa: PTH113 - not OSError, whatever the name
    if missing:
        raise MissingDataError(
            f"{len(missing)} of {len(lines)} images of {file} are not there, the first is {missing[0]!r}; "
            "paths are relative to the table's folder."
        )


plugin = Table
