"""Cutting images into parts: stratified by class, never through a group, the same for the same seed.

A group is whatever must not be in training and test at once: a patient, a source paper, a cluster of near duplicates.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Card, Labels, Part, Splits
from peftbench.errors import DataError, SplitError
from peftbench.storage.files import sha256_file

Index = NDArray[np.int64]  # positions of images
SETTLED = 2 * 10**9  # nanoseconds after which a file cannot change again without its times telling


# --- splitting -----------------------------------------------------------------------------------------------------


def split(labels: Labels, groups: Sequence[str], shares: Sequence[float], seed: int) -> list[Index]:
    """Cut n images into len(shares) parts: sorted positions, one array a part.

    Every group lies in one part, each part holds as nearly its share of every class as the groups allow, and a class
    that lies in enough groups is in every part. Groups are dealt in random order, the largest first, each to where it
    lowers chi-square (sum over parts and classes of (found - wanted)^2 / wanted) most; then moved while that helps.
    Raises SplitError when a part would stay empty.
    """
    _check(labels, groups, shares)
    members, counts = _count(labels, groups)
    wanted = np.asarray(shares, np.float64)[:, None] / sum(shares) * counts.sum(axis=0)
    place = _deal(counts, wanted, seed)
    _improve(place, counts, wanted)
    _cover(place, counts, wanted)
    parts = [np.flatnonzero(place[members] == part) for part in range(len(shares))]
    if not all(len(part) for part in parts):
        few = f"{len(labels)} images in {len(counts)} groups" if len(counts) < len(labels) else f"{len(labels)} images"
        raise SplitError(f"{few} are too few to fill {len(shares)} parts with every class; give more.")
    return parts


def carve(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    """Cut `share` of `part` off, stratified and grouped: (the rest, what was cut off)."""
    rest, cut = split(part.labels, part.groups, (1 - share, share), seed)
    return part.take(rest), part.take(cut)


def _check(labels: Labels, groups: Sequence[str], shares: Sequence[float]) -> None:
    if len(labels) != len(groups):
        raise SplitError(f"{len(labels)} labels but {len(groups)} group keys; give one of each an image.")
    if not shares or min(shares) <= 0:
        raise SplitError(f"Shares of parts must be above 0, not {tuple(shares)}.")


def _count(labels: Labels, groups: Sequence[str]) -> tuple[Index, Index]:
    """The group number of each image (n,), and the images of each class in each group (groups, classes).

    Of multi-label labels (n, labels): the images with each label that occurs, before them the images.
    """
    _, members = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    if labels.ndim == 1:
        kinds = np.unique(labels)
        belongs = (labels[:, None] == kinds).astype(np.int64)
    else:
        belongs = np.concatenate([np.ones((len(labels), 1), np.int64), labels[:, labels.any(axis=0)]], axis=1)
    counts = np.zeros((members.max(initial=-1) + 1, belongs.shape[1]), np.int64)
    np.add.at(counts, members, belongs)
    return members.astype(np.int64), counts


def _rise(have: NDArray[np.float64], group: Index, wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much chi-square rises in each part (parts,) when `group` (classes,) joins `have` (parts, classes)."""
    rise: NDArray[np.float64] = (group * (2 * (have - wanted) + group) / wanted).sum(axis=1)
    return rise


def _deal(counts: Index, wanted: NDArray[np.float64], seed: int) -> Index:
    """A part for each group (groups,)."""
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    place, have = np.zeros(len(counts), np.int64), np.zeros_like(wanted)
    for group in order:
        place[group] = _rise(have, counts[group], wanted).argmin()
        have[place[group]] += counts[group]
    return place


def _improve(place: Index, counts: Index, wanted: NDArray[np.float64]) -> None:
    """Move one group at a time to where chi-square falls, until none does; changes `place`."""
    have = _totals(place, counts, len(wanted))
    moved = True
    while moved:
        moved = False
        for group, count in enumerate(counts):
            have[place[group]] -= count
            rise = _rise(have, count, wanted)
            if rise.min() < rise[place[group]] - 1e-9:  # rounding must not send a group round in circles
                place[group], moved = rise.argmin(), True
            have[place[group]] += count


def _cover(place: Index, counts: Index, wanted: NDArray[np.float64]) -> None:
    """Give every part every class where there are groups to spare, the larger parts first; changes `place`."""
    for part in np.argsort(-wanted.sum(axis=1), kind="stable"):
        for column in range(counts.shape[1]):
            have = _totals(place, counts, len(wanted))
            spare = [g for g in np.flatnonzero(counts[:, column]) if _is_spare(counts[g], have[place[g]])]
            if have[part, column] == 0 and spare:
                place[min(spare, key=lambda g: _rise(have, counts[g], wanted)[part])] = part


def _is_spare(group: Index, have: NDArray[np.float64]) -> bool:
    """Whether the part that holds `have` keeps each of the group's classes when the group leaves."""
    return bool((have[group > 0] > group[group > 0]).all())


def _totals(place: Index, counts: Index, parts: int) -> NDArray[np.float64]:
    """Images of each class in each part (parts, classes)."""
    totals = np.zeros((parts, counts.shape[1]))
    np.add.at(totals, place, counts)
    return totals


# --- groups --------------------------------------------------------------------------------------------------------


def join_duplicates(digests: Sequence[str], groups: Sequence[str]) -> tuple[str, ...]:
    """Group keys under which images of the same bytes share a group, and with it all of both groups."""
    first: dict[str, int] = {}
    return join_pairs([(first.setdefault(digest, i), i) for i, digest in enumerate(digests)], groups)


def join_pairs(pairs: Iterable[tuple[int, int]], groups: Sequence[str]) -> tuple[str, ...]:
    """Group keys under which the two images of each pair share a group: the first of the joined keys by name."""
    leader = {group: group for group in groups}

    def find(group: str) -> str:
        while leader[group] != group:
            leader[group] = group = leader[leader[group]]
        return group

    for left, right in pairs:
        first, second = sorted((find(groups[left]), find(groups[right])))
        leader[second] = first
    return tuple(find(group) for group in groups)


def crossings(parts: Mapping[str, Part], key: str) -> tuple[str, ...]:
    """One sentence for each two parts that share groups; `key` is what a group is, in the singular. Names no group."""
    notes = []
    for left, right in combinations(parts, 2):
        shared = set(parts[left].groups) & set(parts[right].groups)
        images = sum(group in shared for name in (left, right) for group in parts[name].groups)
        if shared:
            what = f"1 {key} lies" if len(shared) == 1 else f"{len(shared)} {key}s lie"
            notes.append(f"{what} in both {left} and {right} ({images} images).")
    return tuple(notes)


def drop_unknown_group_key(card: Card, splits: Splits) -> Card:
    """The card without its group key where every image is its own group: a copy of the set may not tell them."""
    told = any(part.groups != part.names for part in splits.parts.values())
    return card if told else replace(card, group_key="")


# --- contents ------------------------------------------------------------------------------------------------------


def cached_file_digest(file: Path) -> str:
    """Return the SHA-256 of a file; an unchanged file is read once per process. Raises DataError if unreadable."""
    try:
        now = file.stat()
        if time.time_ns() - max(now.st_mtime_ns, now.st_ctime_ns) < SETTLED:
            return sha256_file(file)
        return _remembered(str(file), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}. Fix or remove it.") from None


@cache
def _remembered(file: str, *_: int) -> str:
    return sha256_file(Path(file))


def fingerprint(splits: Splits) -> str:
    """A sha256 over each part's names, labels, groups and image contents: equal if and only if the data are."""
    total = hashlib.sha256()
    for name, part in splits.parts.items():
        facts = [name, part.names, part.labels.tolist(), part.groups, _contents(part)]
        total.update(json.dumps(facts).encode())
    return total.hexdigest()


def _contents(part: Part) -> list[str]:
    if isinstance(part.images, np.ndarray):
        return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in part.images]
    return [cached_file_digest(file) for file in part.images]
