"""Load the images of a data set for a study: audited, cut as requested, checked and decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeAlias

from peftbench.core.contract import Preprocessing, Splits
from peftbench.core.record import WHOLE, Variant
from peftbench.core.spec import Places
from peftbench.data import audit, image_scan, pixel_cache, subsets
from peftbench.data.availability import open_dataset
from peftbench.data.dataset_check import load_splits
from peftbench.data.folds import fold_splits
from peftbench.data.pixel_cache import Data
from peftbench.errors import DataError

OnLoading = Callable[[str, int, int], None]  # what is being done, images done, images in all
Joined: TypeAlias = Literal["", "carved", "all"]  # which validation parts are added to train


def load(  # noqa: PLR0913 - what decides the data
    name: str,
    seed: int,
    preprocessing: Preprocessing,
    places: Places,
    *,
    joined: Joined = "",
    skip_broken: bool = False,
    variant: Variant = WHOLE,
    watch: OnLoading | None = None,
    columns: Mapping[str, str] | None = None,
) -> Data:
    """Return a data set's images, decoded. Raises DataError and SplitError.

    With `joined`, validation images are training images and there is no validation part: `carved` gives back a part
    that was cut from the published train, `all` adds a published one as well. `columns` names those of a table.
    """
    dataset = open_dataset(name, columns)
    card, splits = load_splits(name, dataset, places.data, seed)
    _refuse_undecodable([name, *card.classes])
    if card.positive and (len(card.classes) != 2 or card.positive not in card.classes):  # noqa: PLR2004 - none otherwise
        classes = ", ".join(card.classes)
        raise DataError(f"{name}: positive must be one of two classes, got {card.positive!r}; it has {classes}.")
    if variant.folds:
        splits = fold_splits(splits, card, variant.fold, variant.folds, seed)
    if joined and splits.carved:
        splits = _with_val(splits, "all of train")
    most = None if variant.splits == "deduplicated" else audit.MAX_FILES
    seen = image_scan.scan(splits, places.cache, most, partial(watch, f"auditing {name}") if watch else None)
    splits = subsets.apply_variant(splits, variant, card, seen.duplicates if seen else (), seed)
    if joined == "all" and len(splits.val):
        splits = _with_val(splits, "train and val")
    data = pixel_cache.prepare(
        card,
        splits,
        preprocessing,
        places.cache,
        skip_broken=skip_broken,
        progress=partial(watch, f"decoding {name}") if watch else None,
        limit=places.cache_limit,
    )
    audit.save_counts(places.cache, data.fingerprint, audit.Audit(card, splits, seen).counts)
    return data


def _refuse_undecodable(names: Sequence[str]) -> None:
    """Raise DataError for a data set or class whose folder name is not UTF-8; image files may have any name."""
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"The folder name {name!r} is not valid UTF-8; rename that folder.")


def _with_val(splits: Splits, what: str) -> Splits:
    return replace(
        splits,
        train=splits.train.joined(splits.val),
        val=splits.val.take([]),
        rule=f"{splits.rule}, {what}",
        carved=False,
    )
