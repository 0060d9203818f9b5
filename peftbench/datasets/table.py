"""`table:FILE.csv`: the user's own images, listed in a table with one line per image.

    image,label,split,group
    scans/001.png,benign,train,patient 1

`image` is relative to the table's folder; `split` (train, val, test) and `group` (what must not cross parts) are
optional, and without `group` DICOM files are grouped by the patient they state. `--image-column` and the like, or a
description (`datasets/NAME.toml`), give the columns other names; more columns are ignored. Several labels per image,
`effusion|mass`, need a description with `task = "multi_label"`. Commas, semicolons or tabs separate the cells, in
UTF-8, UTF-16 or Windows-1252, as Excel saves them.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from peftbench.core.contract import DatasetCard, Part, Splits
from peftbench.data import dicom
from peftbench.datasets import _own
from peftbench.errors import DataError, MissingDataError, SplitError

LONGEST = 1000  # characters of a cell; a longer one is not a name or a label
MISSING = frozenset({"", "nan", "-nan", "<na>", "#n/a", "n/a", "nat", "null"})  # labels, in lower case, for none
OTHER_SEPARATORS = r"\s*[;,/+&\s]\s*"  # that people write between labels
SHOWN = 5  # line numbers in an error
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
WORKBOOK = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # Excel's own formats


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read, in lower case."""

    image: str = "image"
    label: str = "label"
    split: str = "split"
    group: str = "group"


DEFAULT = Columns()


@dataclass(frozen=True)
class Line:
    """An image of the table."""

    number: int  # in the file, from 1
    image: str
    label: str
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class Listing:
    """The content of a table: its images, and notes on how it was read."""

    file: Path
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class ImageTable:
    """The images listed in the table `path`, which is relative to the working folder or starts with `~`."""

    path: str
    image_column: str = "image"
    label_column: str = "label"
    split_column: str = "split"
    group_column: str = "group"

    @property
    def _listing(self) -> Listing:
        columns = Columns(self.image_column, self.label_column, self.split_column, self.group_column)
        return read_table(self.file, columns)

    @property
    def file(self) -> Path:
        """The absolute path of the table."""
        return _own.resolve_path(self.path)

    @property
    def card(self) -> DatasetCard:
        """Its classes are the labels. Raises as `load` does."""
        listing = self._listing
        return DatasetCard(
            title=f"table {self.file.name}",
            modality="unknown",
            classes=classes_of(listing),
            licence="the user's own",
            source="a table of the user's",
            group_key=key_of(listing),
        )

    def load(self, root: Path, seed: int) -> Splits:  # noqa: ARG002  the path does not depend on the data folder
        """Read the table and split off missing parts.

        Raises MissingDataError (no table, missing images), DataError (an invalid line) and SplitError (no training
        images).
        """
        card = self.card
        return _own.make_splits(read(self._listing, card.classes), card, seed)


# --- the file --------------------------------------------------------------------------------------------------------


def read_table(file: Path, columns: Columns = DEFAULT, *, several: bool = False) -> Listing:
    """Return the lines of a table with unified names of splits. With `several` labels per image, it may have none.

    Raises MissingDataError and DataError.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise MissingDataError(f"{file} {what}. Give a table with the columns image and label: table:FILE.csv.")
    text, encoding = _decoded(file)
    rows = _rows(file, text)
    places = _places(file, next(rows, (1, []))[1], columns)
    lines = [_line(file, number, row, places) for number, row in rows]
    if not lines:
        raise DataError(f"{file}: no line below the column names. Add a line per image.")
    _refuse_gaps(file, lines, several=several)
    return _with_slashes(file, [_unified(line) for line in lines], encoding)


def _decoded(file: Path) -> tuple[str, tuple[str, ...]]:
    """Return the text of a file, and a note if it is not in UTF-8."""
    content = file.read_bytes()
    if content.startswith(WORKBOOK):
        raise DataError(f"{file} is an Excel workbook. Save it as CSV.")
    try:
        if content.startswith(UTF_16) and "\0" not in (text := content.decode("utf-16")):
            return text, ("The table is encoded in UTF-16.",)
        if b"\0" not in content:
            return content.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        if not content.startswith(UTF_16):
            return _windows_text(content), ("The table is not in UTF-8 and was read as Windows-1252 (Latin-1).",)
    raise DataError(f"{file} is not a text file. Save the table as CSV in UTF-8.")


def _windows_text(content: bytes) -> str:
    """Return text in Latin-1 as Windows writes it, with quotes and dashes in place of control characters."""
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _rows(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line and the stripped cells of each row that is not empty."""
    stated = re.match(r"sep=(.)\r?\n", text)  # Excel's first line about its separator
    separator = stated[1] if stated else max((",", ";", "\t"), key=re.split(r"[\r\n]", text, maxsplit=1)[0].count)
    rest = io.StringIO(text[stated.end() :] if stated else text, newline="")
    reader = csv.reader(rest, delimiter=separator, strict=True)
    skipped, start = (1 if stated else 0), 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield start + skipped, [cell.strip() for cell in row]
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{file}, line {start + skipped}: {error}. Check its quotes.") from None


def _places(file: Path, header: Sequence[str], columns: Columns) -> dict[str, int]:
    """Return the position of each column that is read. Raises DataError without image or label, or for a double."""
    names = [name.lower() for name in header]
    wanted = {key: name.strip().lower() for key, name in vars(columns).items()}
    if twice := next((name for name in wanted.values() if names.count(name) > 1), None):
        raise DataError(f"{file}: the column {twice!r} occurs twice. Remove or rename one.")
    if absent := [wanted[key] for key in ("image", "label") if wanted[key] not in names]:
        found = ", ".join(map(repr, header)) or "none"
        raise DataError(
            f"{file}: no column {' and no column '.join(map(repr, absent))}, found {found}. Pass --image-column and "
            "--label-column, or set image_column and label_column in a description (datasets/NAME.toml)."
        )
    return {key: names.index(name) for key, name in wanted.items() if name in names} | {"": len(names)}


def _line(file: Path, number: int, row: Sequence[str], places: dict[str, int]) -> Line:
    if any(row[places[""] :]):
        raise DataError(f"{file}, line {number}: more cells than columns. Quote cells that contain the separator.")
    cells = {key: row[place] if place < len(row) else "" for key, place in places.items() if key}
    for cell in cells.values():
        if len(cell) > LONGEST:
            raise DataError(f"{file}, line {number}: a cell holds over {LONGEST} characters. Shorten or remove it.")
        if "\n" in cell or "\r" in cell:
            raise DataError(f"{file}, line {number}: {cell[:40]!r} goes on in the next line. Close its quotes.")
    return Line(number, **cells)


def _unified(line: Line) -> Line:
    return Line(line.number, line.image, line.label, _own.NAMES.get(line.split.lower(), ""), line.group)


def _with_slashes(file: Path, lines: Sequence[Line], notes: tuple[str, ...]) -> Listing:
    """Return the listing with Windows' paths made portable where only so the image exists."""
    fixed = [
        Line(line.number, line.image.replace("\\", "/"), line.label, line.split, line.group)
        if "\\" in line.image and not _is_file(file.parent, line.image)
        else line
        for line in lines
    ]
    changed = sum(old is not new for old, new in zip(lines, fixed, strict=True))
    more = (f"Backslashes in paths of the table, read as slashes: {changed}.",) if changed else ()
    return Listing(file, tuple(fixed), (*notes, *more))


def _is_file(home: Path, name: str) -> bool:
    return os.path.isfile(home / name)  # noqa: PTH113 - raises no OSError, whatever the name


def _refuse_gaps(file: Path, lines: Sequence[Line], *, several: bool) -> None:
    """Raise DataError for missing cells, unknown splits and images listed twice, with the numbers of their lines."""
    _refuse(file, "no image", [line for line in lines if not line.image], "Fill or remove")
    _refuse(file, "no label", [line for line in lines if _lacks_label(line, several=several)], "Fill or remove")
    if many := [line for line in lines if len(labels_of(line)) > 1 and not several]:
        fix = 'Keep one label, or write task = "multi_label" into a description (datasets/NAME.toml) for'
        _refuse(file, "several labels", many, fix)
    unknown = [line for line in lines if line.split and line.split.lower() not in _own.NAMES]
    _refuse(file, f"a split {unknown[0].split!r} other than train, val and test" if unknown else "", unknown, "Correct")
    for key in ("split", "group"):
        empty = [line for line in lines if not getattr(line, key)]
        _refuse(file, f"no {key}, which other lines state", empty if len(empty) < len(lines) else [], "Fill or remove")
    _refuse(file, "labels that | does not separate", _joined(lines) if several else [], "Write `a|b` into")
    first: dict[str, int] = {}
    again = [line for line in lines if first.setdefault(_whole_path(file, line), line.number) != line.number]
    _refuse(file, f"the image {again[0].image!r} again" if again else "", again, "Remove")


def _whole_path(file: Path, line: Line) -> str:
    """Return the path of an image without detours such as `./`, as it may be spelled in several ways."""
    return os.path.normpath(file.parent / line.image)


def _joined(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with a label such as `a;b` or `a, b`, where `a` and `b` are labels of other lines."""
    known = {label for line in lines for label in labels_of(line)}
    pieces = {label: re.split(OTHER_SEPARATORS, label) for label in known}
    joined = {label for label, found in pieces.items() if len(found) > 1 and known.issuperset(found)}
    return [line for line in lines if joined.intersection(labels_of(line))]


def _refuse(file: Path, fault: str, lines: Sequence[Line], fix: str) -> None:
    """Raise DataError if there are lines with a fault."""
    if not lines:
        return
    numbers = ", ".join(str(line.number) for line in lines[:SHOWN])
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    where = f"line{'s' if len(lines) > 1 else ''} {numbers}{more}"
    raise DataError(f"{file}, {where}: {fault}. {fix} {'it' if len(lines) == 1 else 'them'}.")


# --- labels ----------------------------------------------------------------------------------------------------------


def labels_of(line: Line) -> list[str]:
    """Return the labels of a line: what `|` separates in `effusion|mass`; `1.0` is the label `1`."""
    return [_own.class_name(label.strip()) for label in line.label.split("|") if label.strip()]


def _lacks_label(line: Line, *, several: bool) -> bool:
    """Return whether the label is missing; with `several` labels an empty cell means none of them."""
    found = labels_of(line)
    return any(label.lower() in MISSING for label in found) or (not found and not several)


def classes_of(listing: Listing) -> tuple[str, ...]:
    """Return the labels in natural order, numbers by value."""
    return _own.in_order({label for line in listing.lines for label in labels_of(line)})


def key_of(listing: Listing) -> str:
    """Return the group key: "group" if there is that column, the patient if DICOM files state several, else ""."""
    if listing.lines[0].group:
        return "group"
    files = [listing.file.parent / line.image for line in listing.lines]
    return _own.PATIENT if dicom.states_patients(files) else ""


# --- parts -----------------------------------------------------------------------------------------------------------


def read(listing: Listing, classes: tuple[str, ...], *, several: bool = False) -> _own.Given:
    """Return the images, labeled by their position in `classes`, or with `several` labels as indicators (n, classes).

    Raises DataError for a label that is not one of the classes, MissingDataError and SplitError.
    """
    known = [_own.class_name(name) for name in classes]
    for line in listing.lines:
        if unknown := [label for label in labels_of(line) if label not in known]:
            listed = ", ".join(classes)
            where = f"{listing.file}, line {line.number}"
            raise DataError(f"{where}: the label {unknown[0]!r} is not one of the classes {listed}. Correct one.")
    _refuse_missing(listing)
    given = _given(listing, classes, several=several)
    return _own.grouped_by_patient(given) if key_of(listing) == _own.PATIENT else given


def _given(listing: Listing, classes: tuple[str, ...], *, several: bool) -> _own.Given:
    """Return the images by part. Raises SplitError if parts are given without train."""
    lines, notes = listing.lines, listing.notes
    splits = list(dict.fromkeys(line.split for line in lines))
    if splits in (["train"], [""]):
        return _own.Given(classes, {"all": _part(listing.file.parent, lines, classes, several=several)}, notes)
    if "train" not in splits:
        raise SplitError(f"{listing.file}: no line with the split train. Add some, or leave the column out.")
    by_part = {part: [line for line in lines if line.split == part] for part in splits}
    parts = {part: _part(listing.file.parent, chosen, classes, several=several) for part, chosen in by_part.items()}
    return _own.Given(classes, parts, notes)


def _part(home: Path, lines: Sequence[Line], classes: tuple[str, ...], *, several: bool) -> Part:
    names = tuple(line.image for line in lines)
    groups = tuple(line.group or line.image for line in lines)
    known = [_own.class_name(name) for name in classes]
    indicators = np.asarray([[label in labels_of(line) for label in known] for line in lines], np.int64)
    return Part([home / name for name in names], indicators if several else indicators.argmax(axis=1), names, groups)


def _refuse_missing(listing: Listing) -> None:
    missing = [line for line in listing.lines if not _is_file(listing.file.parent, line.image)]
    if missing:
        raise MissingDataError(
            f"{listing.file}: {len(missing)} of {len(listing.lines)} images do not exist, the first is "
            f"{missing[0].image!r} (line {missing[0].number}). Paths are relative to the table's folder."
        )


plugin = ImageTable
