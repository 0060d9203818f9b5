"""What is wrong with a data set, before anything trains: leaks between parts, doubles, contradictions, broken files.

The parts are held against what is seen in the images (`evidence.py`). Findings are told to whoever asks, and may name
files and so patients; of an audit nothing but the counts goes into a record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from peftbench.core.contract import Card, Labels, Splits
from peftbench.data.image_scan import Evidence
from peftbench.data.near_duplicates import ALIKE, SIDE, SIMILAR
from peftbench.storage import checked_json

MOST = 10_000  # image files that `run` audits unasked; reading more takes minutes, and `data check` does it once

_GREY = f"at {SIDE} px in grey"
WHAT = {
    "groups_across_parts": "groups that lie in several parts",
    "identical": "sets of byte-identical images",
    "identical_across_parts": "sets of byte-identical images in several parts",
    "near_pairs": f"pairs of near duplicates (correlation above {ALIKE} {_GREY})",
    "near_pairs_across_parts": "pairs of near duplicates in two parts",
    "similar_pairs_across_parts": f"pairs in two parts worth a look (correlation {SIMILAR} to {ALIKE} {_GREY})",
    "contradicting_pairs": "pairs of identical or near-identical images with different labels",
    "broken": "images that do not open",
    "misnamed": "files in another format than their name says",
    "classes_missing": "classes without an image in a part",
}


@dataclass(frozen=True)
class Audit:
    """The findings on the parts of a data set; without evidence only what labels and groups tell."""

    card: Card
    splits: Splits
    evidence: Evidence | None = None

    @cached_property
    def found(self) -> dict[str, tuple[str, ...]]:
        """Kind of finding (a key of WHAT) -> each case in words, which may name files and patients."""
        cases = {"groups_across_parts": self._groups(), "classes_missing": self._missing()}
        if self.evidence:
            cases |= self._doubles(self.evidence)
            here = set(self._place)
            cases["broken"] = tuple(name for name in self.evidence.broken if name in here)
            cases["misnamed"] = tuple(case for case in self.evidence.misnamed if case.rpartition(" is ")[0] in here)
        return {kind: cases[kind] for kind in WHAT if kind in cases}

    @property
    def counts(self) -> dict[str, int]:
        """How often each was found: what a record holds."""
        return {kind: len(cases) for kind, cases in self.found.items()}

    @cached_property
    def balance(self) -> dict[str, list[int]]:
        """Images of each class, by part."""
        return {name: balance(part.labels, len(self.card.classes)) for name, part in self.splits.parts.items()}

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The smallest and the largest image (width, height) by area; None without evidence."""
        opened = [size for size in self.evidence.sizes if size != (0, 0)] if self.evidence else []
        area = lambda size: (size[0] * size[1], size)  # noqa: E731
        return (min(opened, key=area), max(opened, key=area)) if opened else None

    @cached_property
    def _place(self) -> dict[str, str]:
        """The part of each image."""
        return {name: part for part, images in self.splits.parts.items() for name in images.names}

    def _groups(self) -> tuple[str, ...]:
        where: dict[str, list[str]] = defaultdict(list)
        for part, images in self.splits.parts.items():
            for group in dict.fromkeys(images.groups):
                where[group].append(part)
        return tuple(f"{group} ({', '.join(parts)})" for group, parts in where.items() if len(parts) > 1)

    def _doubles(self, seen: Evidence) -> dict[str, tuple[str, ...]]:
        label = {n: part.labels[i].tolist() for part in self.splits.parts.values() for i, n in enumerate(part.names)}
        identical, near, similar, doubles = map(self._here, (seen.identical, seen.near, seen.similar, seen.doubles))
        return {
            "identical": self._told(identical),
            "identical_across_parts": self._told(self._across(identical)),
            "near_pairs": self._told(near),
            "near_pairs_across_parts": self._told(self._across(near)),
            "similar_pairs_across_parts": self._told(self._across(similar)),
            "contradicting_pairs": self._told([(a, b) for a, b in doubles if label[a] != label[b]]),
        }

    def _here(self, sets: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Without images that lie in no part, sets of one left out."""
        here = (tuple(name for name in names if name in self._place) for names in sets)
        return [names for names in here if len(names) > 1]

    def _across(self, sets: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [names for names in sets if len({self._place[name] for name in names}) > 1]

    def _told(self, sets: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(" = ".join(f"{name} ({self._place[name]})" for name in names) for names in sets)

    def _missing(self) -> tuple[str, ...]:
        filled = {part: images for part, images in self.balance.items() if len(self.splits.parts[part])}
        absent = [
            (name, part)
            for part, images in filled.items()
            for name, n in zip(self.card.classes, images, strict=True)
            if not n
        ]
        return tuple(f"{name} in {part}" for name, part in absent)


def balance(labels: Labels, classes: int) -> list[int]:
    """Images of each class, from class indices (n,) or from flags (n, classes)."""
    counts = np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(axis=0)
    return [int(count) for count in counts]


def sentence(counts: Mapping[str, int]) -> str:
    """What a run says of an audit before it trains; empty where nothing in it spoils a result."""
    spoils = ("groups_across_parts", "identical_across_parts", "near_pairs_across_parts", "contradicting_pairs")
    found = [f"{WHAT[kind]}: {counts[kind]}" for kind in spoils if counts.get(kind)]
    return f"the audit found {'; '.join(found)}" if found else ""


# --- from a run to its records -------------------------------------------------------------------------------------


def remember(cache: Path, fingerprint: str, counts: Mapping[str, int]) -> None:
    """Keep the counts for the records of the jobs on these data."""
    file = _counts_file(cache, fingerprint)
    checked_json.write(file, dict(counts), file.parent.name)


def recall(cache: Path, fingerprint: str) -> dict[str, int]:
    """The counts that were kept; none where there was no audit."""
    file = _counts_file(cache, fingerprint)
    try:
        found: dict[str, int] = checked_json.read(file, file.parent.name)
    except (OSError, ValueError):
        return {}
    return found


def _counts_file(cache: Path, fingerprint: str) -> Path:
    return cache / "audit" / fingerprint[:24] / "counts.json"
