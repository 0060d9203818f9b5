"""Shared code of `folder:` and `table:`: keep the parts that are given and split off the missing ones by class."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from peftbench.core.contract import PARTS, DatasetCard, Part, Splits
from peftbench.data import dicom
from peftbench.data.splits import carve, join_duplicates, split
from peftbench.datasets import _files
from peftbench.errors import DataError

NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
PATIENT = "patient"
NUMERIC = r"[+-]?\d+(\.\d+)?"
NUMBER = 20  # digits to which numbers in class names are padded before they are compared
SHARES = (0.7, 0.1, 0.2)  # train, val, test if no part is given
VAL_SHARE, TEST_SHARE = SHARES[1], SHARES[2]  # of train if only that part is missing


@dataclass(frozen=True)
class Given:
    """The content of a folder or table: classes in label order and images by part, all under `all` without parts."""

    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # images found outside of the class folders


def class_name(label: str) -> str:
    """Return a label as the name of its class: `1.0`, as programs write whole numbers, is the class `1`."""
    return re.sub(r"^([+-]?\d+)\.0*$", r"\1", label)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in natural order: numbers by value, other names with the numbers in them by value."""
    found = sorted(names)
    if all(re.fullmatch(NUMERIC, name) for name in found):
        return tuple(sorted(found, key=float))
    return tuple(sorted(found, key=lambda name: re.sub(r"\d+", lambda run: run[0].zfill(NUMBER), name)))


def resolve_path(path: str) -> Path:
    """Return the absolute path of what a user wrote. Raises DataError if no file can have that path."""
    try:
        return Path(path).expanduser().resolve()
    except (RuntimeError, ValueError) as error:
        raise DataError(f"Invalid path {path!r}: {error}.") from None


def make_splits(given: Given, card: DatasetCard, seed: int) -> Splits:
    """Return all three parts; images with the same bytes share a group. Raises SplitError and DataError."""
    if not card.classes:
        raise DataError(f"{card.title}: no image has a label. Add some.")
    if len(card.classes) == 1 and card.task != "multi_label":
        raise DataError(
            f"{card.title}: all images have the label {card.classes[0]!r}, but at least two classes are needed."
        )
    files = [Path(file) for part in given.parts.values() for file in part.images]
    same = _files.digests(files)
    parts, rule = _complete(_joined(given.parts, same), seed)
    rule += f", grouped by {card.group_key}" if card.group_key and rule != "as given" else ""
    notes = (*given.notes, *_look_alike(card.classes), *_contradicting(given.parts, same))
    carved = "train" in given.parts and "val" not in given.parts
    return _files.assemble(parts, card, rule, notes, carved=carved, left_out=given.left_out)


def grouped_by_patient(given: Given) -> Given:
    """Group the images by the patient stated in DICOM files; images without one are their own group."""
    return replace(given, parts={name: _by_patient(part) for name, part in given.parts.items()})


def _by_patient(part: Part) -> Part:
    files = [Path(file) for file in part.images]
    known = [dicom.patient(file) if dicom.is_dicom(file) else "" for file in files]
    groups = tuple(f"patient {one}" if one else name for one, name in zip(known, part.names, strict=True))
    return replace(part, groups=groups)


def _joined(parts: Mapping[str, Part], same: tuple[str, ...]) -> dict[str, Part]:
    """Return the parts with files of the same bytes in one group, also across parts."""
    groups = iter(join_duplicates(same, [group for part in parts.values() for group in part.groups]))
    return {
        name: Part(part.images, part.labels, part.names, tuple(next(groups) for _ in part.names))
        for name, part in parts.items()
    }


def _complete(given: Mapping[str, Part], seed: int) -> tuple[dict[str, Part], str]:
    """Return all three parts and the rule as stored with the splits."""
    if "all" in given:
        whole = given["all"]
        cuts = split(whole.labels, whole.groups, SHARES, seed)
        parts = {name: whole.take(cut) for name, cut in zip(PARTS, cuts, strict=True)}
        return parts, "70/10/20 stratified"
    missing = {"val": VAL_SHARE, "test": TEST_SHARE}
    parts, rule = dict(given), "as given"
    for name, share in missing.items():
        if name not in parts:
            parts["train"], parts[name] = carve(parts["train"], share, seed)
            rule += f", {name} {share:.0%} of train, stratified"
    return parts, rule


def _look_alike(classes: Iterable[str]) -> list[str]:
    """Return notes on classes that may be one: their names differ in case, spaces, invisible characters or zeros."""
    same: dict[str, list[str]] = {}
    for name in classes:
        same.setdefault(_reading(name), []).append(name)
    return [f"Classes that look alike: {', '.join(map(ascii, names))}." for names in same.values() if len(names) > 1]


def _reading(name: str) -> str:
    """Return what a reader makes of a name: letters without case and form, a number by its value."""
    if re.fullmatch(NUMERIC, name):
        return str(float(name) + 0.0)
    seen = (letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    return " ".join("".join(seen).casefold().split())


def _contradicting(parts: Mapping[str, Part], same: tuple[str, ...]) -> list[str]:
    labels = [str(label) for part in parts.values() for label in part.labels.tolist()]
    clash = len(_files.contradicting(labels, same))
    return [f"Byte-identical images with contradicting labels, kept: {clash}."] if clash else []
