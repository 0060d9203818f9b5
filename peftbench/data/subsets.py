"""Other cuts of the same data: without groups that cross parts, without duplicates across parts, with less of train.

Test always stays as it is, so that scores before and after tell what a leak was worth and what more images bring.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from peftbench.core.contract import PARTS, Card, Labels, Part, Splits
from peftbench.core.record import Variant
from peftbench.data.splits import Index, crossings
from peftbench.errors import SplitError

STRETCH = 1.5  # times the share asked for: where whole groups need more to hold every class, the share is refused


def apply_variant(splits: Splits, variant: Variant, card: Card, pairs: Iterable[tuple[str, str]], seed: int) -> Splits:
    """The variant of `splits`; `pairs` names images that are identical or nearly so, which `deduplicated` needs.

    The seed decides which images of train are kept. Raises SplitError where nothing sensible is left.
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
    """Every group in one part: val loses the images of test's groups, train those of val's and test's groups."""
    test, val = set(splits.test.groups), set(splits.val.groups)
    kept = {
        "train": [i for i, group in enumerate(splits.train.groups) if group not in test | val],
        "val": [i for i, group in enumerate(splits.val.groups) if group not in test],
    }
    train, val_ = (len(splits.parts[part]) - len(index) for part, index in kept.items())
    note = f"grouped: {train} images of train and {val_} of val left out whose {key} also lies in a later part."
    if all(part.groups == part.names for part in splits.parts.values()):
        note = "grouped: nothing left out, for it is not known which images belong together."
    return _kept(splits, kept, "grouped", note, key)


def deduplicated(splits: Splits, key: str, pairs: Iterable[tuple[str, str]]) -> Splits:
    """As `grouped`; besides, no image of train or val resembles one of a later part or contradicts its double's label.

    `pairs` names images that are identical or nearly so.
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
        f"deduplicated: {len(leaks)} images of train and val left out that resemble one of a later part, "
        f"{clashing} more whose double has another label."
    )
    return replace(_kept(grown, kept, "deduplicated", note, key), rule=f"{splits.rule}, deduplicated")


def _kept(splits: Splits, kept: Mapping[str, Sequence[int]], rule: str, note: str, key: str) -> Splits:
    for part, index in kept.items():
        if not index and len(splits.parts[part]):
            raise SplitError(f"--splits {rule} would leave no image in {part}; use another cut of these data.")
    parts = {part: splits.parts[part].take(index) for part, index in kept.items()}
    return _replaced(splits, parts, f"{splits.rule}, {rule}", note, key)


def _replaced(splits: Splits, parts: Mapping[str, Part], rule: str, note: str, key: str) -> Splits:
    """With other parts; the notes on crossing groups are written anew."""
    stale = crossings(splits.parts, key)
    changed = splits.parts | dict(parts)
    notes = (*(old for old in splits.notes if old not in stale), note, *crossings(changed, key))
    return Splits(changed["train"], changed["val"], changed["test"], rule, notes, splits.carved)


# --- less of train -------------------------------------------------------------------------------------------------


def _subset(splits: Splits, index: Index, words: str, key: str) -> Splits:
    part = splits.train.take(index)
    note = f"{words}: {len(part)} of {len(splits.train)} training images, {len(set(part.groups))} groups."
    return _replaced(splits, {"train": part}, f"{splits.rule}, {words}", note, key)


def select_share(part: Part, share: float, classes: Sequence[str], seed: int) -> Index:
    """Sorted positions of about `share` of a part: whole groups, every class, the classes in their proportions.

    A seed puts the groups in one order whatever the share, so that a smaller share lies within a larger one, and nearly
    the same one where some groups are left out. Raises SplitError where the groups needed to show every class are far
    more than was asked for.
    """
    members, counts, names = _groups(part, len(classes))
    order = _order(counts, _shuffled(names, seed))
    reached = np.cumsum(np.bincount(members)[order])
    seen = np.cumsum(counts[order] > 0, axis=0)[:, counts.any(axis=0)]
    cover = int((seen > 0).all(axis=1).argmax()) + 1
    target = share * len(part)
    if reached[cover - 1] > STRETCH * target:
        raise SplitError(
            f"--train-share {100 * share:.3g}%: that is {target:.0f} of {len(part)} training images, but whole groups "
            f"with every class take {reached[cover - 1]}; ask for {reached[cover - 1] / len(part):.1%} or more."
        )
    length = max(cover, int(np.abs(reached - target).argmin()) + 1)
    return np.flatnonzero(np.isin(members, order[:length]))


def select_shots(part: Part, images: int, classes: Sequence[str], seed: int) -> Index:
    """Sorted positions of `images` images of each class, from as many groups as there are.

    A seed puts the images in one order, so that fewer shots lie within more. Raises SplitError where a class has fewer.
    """
    order = _shuffled(part.names, seed)
    shown, chosen = _shown(part.labels, len(classes)), set[int]()
    for label, name in enumerate(classes):
        mine = [i for i in order if shown[i, label]]
        if len(mine) < images:
            raise SplitError(f"--shots {images}: class {name!r} has {len(mine)} images in train; ask for no more.")
        chosen.update(_by_turns(mine, part.groups)[:images])
    return np.asarray(sorted(chosen), np.int64)


def _by_turns(images: Sequence[int], groups: Sequence[str]) -> list[int]:
    """One image of each group, then a second of each that has one, and so on."""
    times = Counter[str]()
    turn = {}
    for i in images:
        turn[i] = times[groups[i]]
        times[groups[i]] += 1
    return sorted(images, key=turn.__getitem__)


def _shown(labels: Labels, classes: int) -> Index:
    """Whether an image shows a class (n, classes), from class indices (n,) or from flags."""
    return np.eye(classes, dtype=np.int64)[labels] if labels.ndim == 1 else labels


def _shuffled(names: Sequence[str], seed: int) -> list[int]:
    """Positions in an order that chance decides name by name: without some of them, the others keep theirs."""

    def drawn(i: int) -> bytes:
        return hashlib.sha256(f"{seed} {names[i]}".encode(errors="surrogateescape")).digest()

    return sorted(range(len(names)), key=drawn)


def _groups(part: Part, classes: int) -> tuple[Index, Index, list[str]]:
    """Group number of each image (n,), images of each group by class, last of none (groups, classes + 1), its name."""
    names, members = np.unique(np.asarray(part.groups, dtype=np.str_), return_inverse=True)
    shown = _shown(part.labels, classes)
    shown = np.column_stack([shown, ~shown.any(axis=1)])
    counts = np.zeros((members.max(initial=-1) + 1, classes + 1), np.int64)
    np.add.at(counts, members, shown)
    return members.astype(np.int64), counts, names.tolist()


def _order(counts: Index, shuffled: Sequence[int]) -> Index:
    """All groups: first one of each class, the rarest first, then always one of the class that lags furthest behind."""
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
            wanted[column] = np.nan  # all its groups are taken
            continue
        taken[group] = None
        have += counts[group]
    return np.asarray(list(taken), np.int64)


def _queues(shuffled: Sequence[int], counts: Index, taken: Mapping[int, None]) -> list[Iterator[int]]:
    """For each class its groups, in random order, those that are taken by then left out."""

    def queue(column: int) -> Iterator[int]:
        return (group for group in shuffled if counts[group, column] and group not in taken)

    return [queue(column) for column in range(counts.shape[1])]
