"""Audit a data set before training: leaks between parts, duplicates, contradicting labels, broken files.

An audit compares the parts with a scan of the images (`image_scan.py`). Its findings may name files, and so patients;
a record holds only the counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from peftbench.core.contract import DatasetCard, Labels, Splits
from peftbench.core.leaks import LEAKS, describe_leaks
from peftbench.data.image_scan import ImageScan
from peftbench.data.near_duplicates import ALIKE, SIDE, SIMILAR
from peftbench.data.splits import missing_classes
from peftbench.storage import checked_json

MAX_FILES = 10_000  # above it `run` skips the audit, which would take minutes; `data check` has no such limit

_GREY = f"at {SIDE} px in grey"
DESCRIPTIONS = {
    "groups_across_parts": LEAKS["groups_across_parts"],
    "identical": "sets of byte-identical images",
    "identical_across_parts": LEAKS["identical_across_parts"],
    "near_pairs": f"pairs of near duplicates (correlation above {ALIKE} {_GREY})",
    "near_pairs_across_parts": LEAKS["near_pairs_across_parts"],
    "similar_pairs_across_parts": f"pairs of similar images in two parts (correlation {SIMILAR} to {ALIKE} {_GREY})",
    "contradicting_pairs": LEAKS["contradicting_pairs"],
    "broken": "images that cannot be decoded",
    "misnamed": "files whose format differs from their suffix",
    "classes_missing": "classes missing in a part",
    "left_out": "images outside of the class folders, left out",
}


@dataclass(frozen=True)
class Audit:
    """The findings on the parts of a data set; without a scan only those from labels and groups."""

    card: DatasetCard
    splits: Splits
    scan: ImageScan | None = None

    @cached_property
    def found(self) -> dict[str, tuple[str, ...]]:
        """Kind of finding (a key of DESCRIPTIONS) -> one text per case, which may name files and patients."""
        cases = {"groups_across_parts": self._groups(), "classes_missing": self._missing()}
        cases["left_out"] = self.splits.left_out
        if self.scan:
            cases |= self._duplicates(self.scan)
            here = set(self._part_of)
            cases["broken"] = tuple(f"{name} ({reason})" for name, reason in self.scan.broken.items() if name in here)
            cases["misnamed"] = tuple(case for case in self.scan.misnamed if case.rpartition(" is ")[0] in here)
        return {kind: cases[kind] for kind in DESCRIPTIONS if kind in cases}

    @property
    def counts(self) -> dict[str, int]:
        """The number of cases of each kind, as stored in a record."""
        return {kind: len(cases) for kind, cases in self.found.items()}

    @cached_property
    def balance(self) -> dict[str, list[int]]:
        """Part -> the number of images of each class."""
        return {name: class_counts(part.labels, len(self.card.classes)) for name, part in self.splits.parts.items()}

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The smallest and the largest image (width, height) by area; None without a scan."""
        opened = [size for size in self.scan.sizes if size != (0, 0)] if self.scan else []
        area = lambda size: (size[0] * size[1], size)  # noqa: E731
        return (min(opened, key=area), max(opened, key=area)) if opened else None

    @cached_property
    def _part_of(self) -> dict[str, str]:
        """Image name -> part."""
        return {name: part for part, images in self.splits.parts.items() for name in images.names}

    def _groups(self) -> tuple[str, ...]:
        where: dict[str, list[str]] = defaultdict(list)
        for part, images in self.splits.parts.items():
            for group in dict.fromkeys(images.groups):
                where[group].append(part)
        return tuple(f"{group} ({', '.join(parts)})" for group, parts in where.items() if len(parts) > 1)

    def _duplicates(self, seen: ImageScan) -> dict[str, tuple[str, ...]]:
        label = {n: part.labels[i].tolist() for part in self.splits.parts.values() for i, n in enumerate(part.names)}
        identical, near, similar, all_pairs = map(
            self._here, (seen.identical, seen.near, seen.similar, seen.duplicates)
        )
        return {
            "identical": self._as_text(identical),
            "identical_across_parts": self._as_text(self._across(identical)),
            "near_pairs": self._as_text(near),
            "near_pairs_across_parts": self._as_text(self._across(near)),
            "similar_pairs_across_parts": self._as_text(self._across(similar)),
            "contradicting_pairs": self._as_text([(a, b) for a, b in all_pairs if label[a] != label[b]]),
        }

    def _here(self, sets: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Drop images that are in no part, then sets with fewer than two images."""
        here = (tuple(name for name in names if name in self._part_of) for names in sets)
        return [names for names in here if len(names) > 1]

    def _across(self, sets: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [names for names in sets if len({self._part_of[name] for name in names}) > 1]

    def _as_text(self, sets: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(" = ".join(f"{name} ({self._part_of[name]})" for name in names) for names in sets)

    def _missing(self) -> tuple[str, ...]:
        filled = {name: part for name, part in self.splits.parts.items() if len(part)}
        return tuple(
            f"{label} in {name}" for name, part in filled.items() for label in missing_classes(part, self.card)
        )


def class_counts(labels: Labels, classes: int) -> list[int]:
    """Return the number of images of each class, from class indices (n,) or indicators (n, classes)."""
    counts = np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(axis=0)
    return [int(count) for count in counts]


def warning(counts: Mapping[str, int]) -> str:
    """Return the warning that `run` prints before training; "" if no finding affects the scores."""
    found = describe_leaks(counts)
    return f"the audit found {found}" if found else ""


# --- counts kept for the records ------------------------------------------------------------------------------------


def save_counts(cache: Path, fingerprint: str, counts: Mapping[str, int]) -> None:
    """Write the counts to the cache, for the records of the jobs on these data."""
    file = counts_file(cache, fingerprint)
    checked_json.write(file, dict(counts), file.parent.name)


def load_counts(cache: Path, fingerprint: str) -> dict[str, int]:
    """Return the counts saved for these data; empty if they were not audited."""
    file = counts_file(cache, fingerprint)
    try:
        found: dict[str, int] = checked_json.read(file, file.parent.name)
    except (OSError, ValueError):
        return {}
    return found


def counts_file(cache: Path, fingerprint: str) -> Path:
    """Return where `save_counts` writes the counts of these data."""
    return cache / "audit" / fingerprint[:24] / "counts.json"
