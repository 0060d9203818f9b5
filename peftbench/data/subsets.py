"""Variants of the same data: without groups or duplicates across parts, or with a subset of train.

The test part never changes, so that scores of variants are comparable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from peftbench.core.contract import PARTS, DatasetCard, Labels, Part, Splits
from peftbench.core.record import Variant
from peftbench.data.splits import Index, crossings
from peftbench.errors import SplitError
from peftbench.storage.files import sha256

MAX_EXCESS = 1.5  # times the requested share; if whole groups with every class need more, the share is refused


def apply_variant(
    splits: Splits, variant: Variant, card: DatasetCard, pairs: Iterable[tuple[str, str]], seed: int
) -> Splits:
    """Return a variant of the splits; `pairs` names duplicates and near duplicates, for `deduplicated`.

    The seed decides which training images a subset holds. Raises SplitError if a part would be empty or a class too
    small.
    """
    key = card.group_key or "byte-identical picture"
    if variant.splits == "grouped":
        splits = grouped(splits, key)
    if variant.splits == "deduplicated":
        splits = deduplicated(splits, key, pairs)
    if variant.shots:
        index = select_shots(splits.train, variant.shots, card.classes, seed)
    elif variant.share < 1:
        index = select_share(splits.train, variant.share, card.classes, seed)
    else:
        return splits
    return _subset(splits, index, str(replace(variant, splits="official")), key)


# --- leaks ---------------------------------------------------------------------------------------------------------


def grouped(splits: Splits, key: str) -> Splits:
    """Return splits with every group in one part: val loses test's groups, train loses val's and test's groups."""
    test, val = set(splits.test.groups), set(splits.val.groups)
    kept = {
        "train": [i for i, group in enumerate(splits.train.groups) if group not in test | val],
        "val": [i for i, group in enumerate(splits.val.groups) if group not in test],
    }
    train, val_ = (len(splits.parts[part]) - len(index) for part, index in kept.items())
    note = f"grouped: {train} images of train and {val_} of val left out because their {key} is also in a later part."
    if all(part.groups == part.names for part in splits.parts.values()):
        note = "grouped: nothing left out because no groups are known."
    return _kept(splits, kept, "grouped", note, key)


def deduplicated(splits: Splits, key: str, pairs: Iterable[tuple[str, str]]) -> Splits:
    """Return `grouped` splits, also without duplicates of images in later parts or with contradicting labels.

    `pairs` names duplicates and near duplicates.
    """
    grown = grouped(splits, key)
    order = {name: rank for rank, part in enumerate(PARTS) for name in grown.parts[part].names}
    known = [sorted(pair, key=order.__getitem__) for pair in pairs if order.keys() >= set(pair)]
    label = {name: part.labels[i].tolist() for part in grown.parts.values() for i, name in enumerate(part.names)}
    leaks = {early for early, late in known if order[early] < order[late]}
    clash = {name for pair in known if label[pair[0]] != label[pair[1]] for name in pair}
    kept = {
        part: [i for i, name in enumerate(grown.parts[part].names) if name not in leaks | clash] for part in PARTS[:2]
    }
    clashing = sum(name not in leaks and PARTS[order[name]] != "test" for name in clash)
    note = (
        f"deduplicated: {len(leaks)} images of train and val left out as duplicates of a later part, "
        f"{clashing} more because a duplicate has another label."
    )
    return replace(_kept(grown, kept, "deduplicated", note, key), rule=f"{splits.rule}, deduplicated")


def _kept(splits: Splits, kept: Mapping[str, Sequence[int]], rule: str, note: str, key: str) -> Splits:
    for part, index in kept.items():
        if not index and len(splits.parts[part]):
            raise SplitError(f"--splits {rule} would leave no image in {part}. Use other --splits.")
    parts = {part: splits.parts[part].take(index) for part, index in kept.items()}
    return _replaced(splits, parts, f"{splits.rule}, {rule}", note, key)


def _replaced(splits: Splits, parts: Mapping[str, Part], rule: str, note: str, key: str) -> Splits:
    """Return the splits with other parts and updated notes on groups that cross parts."""
    stale = crossings(splits.parts, key)
    changed = splits.parts | dict(parts)
    notes = (*(old for old in splits.notes if old not in stale), note, *crossings(changed, key))
    return Splits(changed["train"], changed["val"], changed["test"], rule, notes, splits.carved, splits.left_out)


# --- subsets of train ----------------------------------------------------------------------------------------------


def _subset(splits: Splits, index: Index, words: str, key: str) -> Splits:
    part = splits.train.take(index)
    note = f"{words}: {len(part)} of {len(splits.train)} training images, {len(set(part.groups))} groups."
    return _replaced(splits, {"train": part}, f"{splits.rule}, {words}", note, key)


def select_share(part: Part, share: float, classes: Sequence[str], seed: int) -> Index:
    """Return sorted positions of about `share` of a part: whole groups, every class, classes in proportion.

    The seed fixes one order of the groups for all shares, so a smaller share is a subset of a larger one. Raises
    SplitError if the groups needed for every class hold more than MAX_EXCESS times the requested images.
    """
    members, counts, names = _groups(part, len(classes))
    order = _order(counts, _shuffled(names, seed))
    reached = np.cumsum(np.bincount(members)[order])
    seen = np.cumsum(counts[order] > 0, axis=0)[:, counts.any(axis=0)]
    cover = int((seen > 0).all(axis=1).argmax()) + 1
    target = share * len(part)
    if reached[cover - 1] > MAX_EXCESS * target:
        raise SplitError(
            f"--train-share {100 * share:.3g}% is {target:.0f} of {len(part)} training images, but whole groups with "
            f"every class need {reached[cover - 1]}. Use {reached[cover - 1] / len(part):.1%} or more."
        )
    length = max(cover, int(np.abs(reached - target).argmin()) + 1)
    return np.flatnonzero(np.isin(members, order[:length]))


def select_shots(part: Part, images: int, classes: Sequence[str], seed: int) -> Index:
    """Return sorted positions of `images` images per class, from as many groups as possible.

    The seed fixes one order of the images, so fewer shots are a subset of more. Raises SplitError if a class has fewer.
    """
    order = _shuffled(part.names, seed)
    shows, chosen = _indicators(part.labels, len(classes)), set[int]()
    for label, name in enumerate(classes):
        of_class = [i for i in order if shows[i, label]]
        if len(of_class) < images:
            raise SplitError(f"--shots {images}: class {name!r} has only {len(of_class)} images in train.")
        chosen.update(_round_robin(of_class, part.groups)[:images])
    return np.asarray(sorted(chosen), np.int64)


def _round_robin(images: Sequence[int], groups: Sequence[str]) -> list[int]:
    """Order images by turns: one of each group, then a second of each group, and so on."""
    seen = Counter[str]()
    turn = {}
    for i in images:
        turn[i] = seen[groups[i]]
        seen[groups[i]] += 1
    return sorted(images, key=turn.__getitem__)


def _indicators(labels: Labels, classes: int) -> Index:
    """Return indicators (n, classes) from class indices (n,), or multi-label labels as they are."""
    return np.eye(classes, dtype=np.int64)[labels] if labels.ndim == 1 else labels


def _shuffled(names: Sequence[str], seed: int) -> list[int]:
    """Return positions in random order; the order of two images depends on their names and the seed alone."""

    def sort_key(i: int) -> str:
        return sha256(f"{seed} {names[i]}".encode(errors="surrogateescape"))

    return sorted(range(len(names)), key=sort_key)


def _groups(part: Part, classes: int) -> tuple[Index, Index, list[str]]:
    """Return group numbers (n,), images per group and class, the last column without a class, and group names."""
    names, members = np.unique(np.asarray(part.groups, dtype=np.str_), return_inverse=True)
    shown = _indicators(part.labels, classes)
    shown = np.column_stack([shown, ~shown.any(axis=1)])
    counts = np.zeros((members.max(initial=-1) + 1, classes + 1), np.int64)
    np.add.at(counts, members, shown)
    return members.astype(np.int64), counts, names.tolist()


def _order(counts: Index, shuffled: Sequence[int]) -> Index:
    """Return all groups: first one of each class, rarest first, then always one of the most underrepresented class."""
    taken, have = dict[int, None](), np.zeros(counts.shape[1])
    queues = _queues(shuffled, counts, taken)
    wanted = counts.sum(axis=0) / max(1, counts.sum())
    rarest = np.argsort((counts > 0).sum(axis=0), kind="stable")
    while len(taken) < len(counts):
        unseen = [c for c in rarest if wanted[c] and not have[c]]
        lag = np.where(np.isnan(wanted), -np.inf, wanted * (have.sum() + 1) - have)
        column = int(unseen[0] if unseen else lag.argmax())
        group = next(queues[column], None)
        if group is None:
            wanted[column] = np.nan  # no group of this class is left
            continue
        taken[group] = None
        have += counts[group]
    return np.asarray(list(taken), np.int64)


def _queues(shuffled: Sequence[int], counts: Index, taken: Mapping[int, None]) -> list[Iterator[int]]:
    """Return for each class an iterator over its groups in random order that skips groups taken meanwhile."""

    def queue(column: int) -> Iterator[int]:
        return (group for group in shuffled if counts[group, column] and group not in taken)

    return [queue(column) for column in range(counts.shape[1])]
