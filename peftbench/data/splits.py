"""Split images into parts: stratified by class, whole groups, reproducible by seed.

A group is what must not be in training and test at once: a patient, a source paper, a cluster of near duplicates.
"""

from __future__ import annotations

import errno
import json
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import DatasetCard, Labels, Part, Splits
from peftbench.data.image_io import facts
from peftbench.errors import DataError, SplitError
from peftbench.storage.files import sha256, sha256_file, sha256_pieces

Index = NDArray[np.int64]  # positions of images
DECODED = "/2"  # after the digest of images that version 0.1.0 decoded differently, so their job ids change
UNOPENED = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP})
SETTLED = 2 * 10**9  # nanoseconds since the last change, after which any further change shows in a file's times


# --- splitting -----------------------------------------------------------------------------------------------------


def split(labels: Labels, groups: Sequence[str], shares: Sequence[float], seed: int) -> list[Index]:
    """Split n images into len(shares) parts; return one sorted array of positions per part.

    Each group is in one part, each part gets its share of every class as closely as the groups allow, and a class with
    enough groups is in every part. Groups are assigned largest first, in random order, each to the part where
    chi-square (the sum over parts and classes of (found - wanted)^2 / wanted) rises least, then moved while that lowers
    it. Raises SplitError if a part would be empty.
    """
    _check(labels, groups, shares)
    members, counts = _group_counts(labels, groups)
    wanted = np.asarray(shares, np.float64)[:, None] / sum(shares) * counts.sum(axis=0)
    assigned = _assign(counts, wanted, seed)
    _improve(assigned, counts, wanted)
    _cover_classes(assigned, counts, wanted)
    parts = [np.flatnonzero(assigned[members] == part) for part in range(len(shares))]
    if not all(len(part) for part in parts):
        what = f"{len(labels)} images in {len(counts)} groups" if len(counts) < len(labels) else f"{len(labels)} images"
        raise SplitError(f"{what} are too few for {len(shares)} parts with every class. Add images.")
    return parts


def carve(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    """Split `share` off `part`, stratified and grouped; return (the rest, the share)."""
    rest, cut = split(part.labels, part.groups, (1 - share, share), seed)
    return part.take(rest), part.take(cut)


def _check(labels: Labels, groups: Sequence[str], shares: Sequence[float]) -> None:
    if len(labels) != len(groups):
        raise SplitError(f"There must be one label and one group key per image, got {len(labels)} and {len(groups)}.")
    if not shares or min(shares) <= 0:
        raise SplitError(f"Shares of parts must be above 0, got {tuple(shares)}.")


def _group_counts(labels: Labels, groups: Sequence[str]) -> tuple[Index, Index]:
    """Return the group number of each image (n,) and the images of each class in each group (groups, classes).

    For multi-label labels (n, labels) the columns are all images, then the images with each label that occurs.
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
    """Return the rise of chi-square in each part (parts,) if `group` (classes,) joins `have` (parts, classes)."""
    rise: NDArray[np.float64] = (group * (2 * (have - wanted) + group) / wanted).sum(axis=1)
    return rise


def _assign(counts: Index, wanted: NDArray[np.float64], seed: int) -> Index:
    """Return the part of each group (groups,)."""
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    assigned, have = np.zeros(len(counts), np.int64), np.zeros_like(wanted)
    for group in order:
        assigned[group] = _rise(have, counts[group], wanted).argmin()
        have[assigned[group]] += counts[group]
    return assigned


def _improve(assigned: Index, counts: Index, wanted: NDArray[np.float64]) -> None:
    """Move single groups to where chi-square falls until no move lowers it; changes `assigned` in place."""
    have = _totals(assigned, counts, len(wanted))
    moved = True
    while moved:
        moved = False
        for group, count in enumerate(counts):
            have[assigned[group]] -= count
            rise = _rise(have, count, wanted)
            if rise.min() < rise[assigned[group]] - 1e-9:  # a tolerance, so that rounding cannot cause a cycle
                assigned[group], moved = rise.argmin(), True
            have[assigned[group]] += count


def _cover_classes(assigned: Index, counts: Index, wanted: NDArray[np.float64]) -> None:
    """Move spare groups to parts that lack a class, the larger parts first; changes `assigned` in place."""
    for part in np.argsort(-wanted.sum(axis=1), kind="stable"):
        for column in range(counts.shape[1]):
            have = _totals(assigned, counts, len(wanted))
            spare = [g for g in np.flatnonzero(counts[:, column]) if _is_spare(counts[g], have[assigned[g]])]
            if have[part, column] == 0 and spare:
                assigned[min(spare, key=lambda g: _rise(have, counts[g], wanted)[part])] = part


def _is_spare(group: Index, have: NDArray[np.float64]) -> bool:
    """Return whether a part with the counts `have` keeps each of the group's classes without the group."""
    return bool((have[group > 0] > group[group > 0]).all())


def _totals(assigned: Index, counts: Index, parts: int) -> NDArray[np.float64]:
    """Return the images of each class in each part (parts, classes)."""
    totals = np.zeros((parts, counts.shape[1]))
    np.add.at(totals, assigned, counts)
    return totals


# --- groups --------------------------------------------------------------------------------------------------------


def join_duplicates(digests: Sequence[str], groups: Sequence[str]) -> tuple[str, ...]:
    """Return group keys in which images with the same digest share a group, which merges their former groups."""
    first: dict[str, int] = {}
    return join_pairs([(first.setdefault(digest, i), i) for i, digest in enumerate(digests)], groups)


def join_pairs(pairs: Iterable[tuple[int, int]], groups: Sequence[str]) -> tuple[str, ...]:
    """Return group keys in which both images of each pair share a group; a merged group has the first key by name."""
    leader = {group: group for group in groups}

    def root(group: str) -> str:
        while leader[group] != group:
            leader[group] = group = leader[leader[group]]
        return group

    for left, right in pairs:
        first, second = sorted((root(groups[left]), root(groups[right])))
        leader[second] = first
    return tuple(root(group) for group in groups)


def crossings(parts: Mapping[str, Part], key: str) -> tuple[str, ...]:
    """Return one sentence for each two parts that share groups, without their names; `key` is the word for a group."""
    notes = []
    for left, right in combinations(parts, 2):
        shared = set(parts[left].groups) & set(parts[right].groups)
        images = sum(group in shared for name in (left, right) for group in parts[name].groups)
        if shared:
            what = f"1 {key} is" if len(shared) == 1 else f"{len(shared)} {key}s are"
            notes.append(f"{what} in both {left} and {right} ({images} images).")
    return tuple(notes)


def drop_unknown_group_key(card: DatasetCard, splits: Splits) -> DatasetCard:
    """Return the card without its group key if every image is its own group, as in copies without that information."""
    known = any(part.groups != part.names for part in splits.parts.values())
    return card if known else replace(card, group_key="")


# --- checks --------------------------------------------------------------------------------------------------------


def check_parts(card: DatasetCard, splits: Splits) -> None:
    """Raise SplitError for labels of another shape than the task's, an empty part, or a class without training images.

    The last step before decoded images are used, after images have been left out for whatever reason. Only val may be
    empty.
    """
    several = card.task == "multi_label"
    if any(part.labels.shape[1:] != ((len(card.classes),) if several else ()) for part in splits.parts.values()):
        needed = f"{len(card.classes)} labels, 0 or 1," if several else "one label"
        raise SplitError(f"{card.title}: its task is {card.task}, so each image must have {needed} in every part.")
    for name in ("train", "test"):
        if not len(splits.parts[name]):
            outside = sum(Path(file).parts[0].lower().startswith(name) for file in splits.left_out)
            why = f"; {outside} images in it are outside of class folders" if outside else ""
            raise SplitError(f"{card.title}: the part {name} has no image{why}. Add images or remove the part.")
    if absent := missing_classes(splits.train, card):
        raise SplitError(f"{card.title}: no training image of class {', '.join(map(repr, absent))}. Add some.")


def missing_classes(part: Part, card: DatasetCard) -> list[str]:
    """Return the classes without an image in a part."""
    return [name for label, name in enumerate(card.classes) if label not in part.seen]


def missing_class_notes(splits_parts: Mapping[str, Part], card: DatasetCard) -> tuple[str, ...]:
    """Return a note for each class without an image in a part that has images."""
    filled = {name: part for name, part in splits_parts.items() if len(part)}
    return tuple(
        f"No image of class {c!r} in {name}." for name, part in filled.items() for c in missing_classes(part, card)
    )


# --- contents ------------------------------------------------------------------------------------------------------


def cached_file_digest(file: Path) -> str:
    """Return the SHA-256 of a file; an unchanged file is read once per process.

    A file that cannot be opened, such as a broken link, gets a digest of its own: decoding reports the reason. Raises
    DataError if reading fails.
    """
    try:
        now = file.stat()
        if not stat.S_ISREG(now.st_mode):
            return _unopened(file)
        if time.time_ns() - max(now.st_mtime_ns, now.st_ctime_ns) < SETTLED:
            return sha256_file(file)
        return _remembered(str(file), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
    except OSError as error:
        if error.errno in UNOPENED:
            return _unopened(file)
        raise DataError(f"Cannot read {file}: {error.strerror}. Fix or remove it.") from None


def _unopened(file: Path) -> str:
    return sha256(f"unopened {file}".encode(errors="surrogateescape"))


@cache
def _remembered(file: str, *_: int) -> str:
    return sha256_file(Path(file))


def fingerprint(splits: Splits) -> str:
    """Return a SHA-256 over the names, labels, groups and image contents of each part."""
    parts = (
        [name, part.names, part.labels.tolist(), part.groups, _contents(part)] for name, part in splits.parts.items()
    )
    return sha256_pieces(json.dumps(content).encode() for content in parts)


def _contents(part: Part) -> list[str]:
    if isinstance(part.images, np.ndarray):
        return [sha256(np.ascontiguousarray(image).data) for image in part.images]
    return [cached_file_digest(file) + DECODED * facts(file).changed for file in part.images]
