"""Load the parts of a data set, and refuse those that do not keep the contract of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np

from peftbench.core.contract import Dataset, DatasetCard, Part, Splits, TaskKind
from peftbench.core.registry import registry
from peftbench.data.splits import drop_unknown_group_key
from peftbench.errors import PluginError


def load_splits(name: str, dataset: Dataset, root: Path, seed: int) -> tuple[DatasetCard, Splits]:
    """Return the card of a data set, without a group key that no image has, and its parts.

    Raises what `Dataset.load` raises, and PluginError for content that does not keep the contract.
    """
    known = registry("datasets")
    with known.calling(name):
        splits, card = dataset.load(root, seed), dataset.card
    if fault := next(_faults(card, splits), ""):
        raise PluginError(f"{known.describe(name)} failed: {fault}.")
    return drop_unknown_group_key(card, splits), splits


def _faults(card: DatasetCard, splits: Splits) -> Iterator[str]:
    """Yield what is wrong with the content of a data set; later faults assume that the earlier ones are absent."""
    if not isinstance(card, DatasetCard):
        yield f"its card is {type(card).__name__} instead of DatasetCard"
    if not all(isinstance(name, str) for name in card.classes) or len(set(card.classes)) < len(card.classes):
        yield "its classes are not distinct texts"
    if card.task not in get_args(TaskKind):
        yield f"its task is {card.task!r} instead of one of {', '.join(get_args(TaskKind))}"
    for name, part in splits.parts.items():
        yield from (f"{fault} in {name}" for fault in _part_faults(part, card))


def _part_faults(part: Part, card: DatasetCard) -> Iterator[str]:
    images, labels = part.images, part.labels
    if not hasattr(labels, "dtype") or labels.dtype.kind not in "iu":
        yield "its labels are not an array of integers"
    if len({len(images), len(labels), len(part.names), len(part.groups)}) > 1:
        yield "there is not one label, name and group for each image"
    most = 1 if card.task == "multi_label" else len(card.classes) - 1
    if labels.size and not 0 <= labels.min() <= labels.max() <= most:
        yield f"its labels are not within 0 to {most}"
    if not all(isinstance(text, str) for text in (*part.names, *part.groups)):
        yield "its names and groups are not texts"
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim not in {3, 4}:
            yield f"its pixels are {images.dtype} {images.shape} instead of uint8 (n, H, W, 3)"
    elif not all(isinstance(image, Path) for image in images):
        yield "its images are neither paths nor an array of pixels"
