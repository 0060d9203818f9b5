"""check_dataset: a complete card, parts that do not overlap, labels as the card describes them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Dataset, DatasetCard, Part, Splits
from peftbench.data.image_io import open_picture
from peftbench.errors import MissingDataError
from peftbench.testing.findings import Finding, Rule, Skipped, listed, refuse_torch, require, run_rules


class DatasetFixture:
    """A data set, the folder of its files, and its parts, read once."""

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self.dataset, self.root = dataset, root

    @cached_property
    def splits(self) -> Splits:
        """The parts at seed 0. Skips the rule where the files are not on this machine."""
        try:
            return self.dataset.load(self.root, 0)
        except MissingDataError as error:
            raise Skipped(str(error)) from None

    @property
    def card(self) -> DatasetCard:
        """The data set's card."""
        return self.dataset.card


def it_loads(fixture: DatasetFixture) -> str:
    """Each part has as many labels, names and groups as images; train is not empty."""
    parts = fixture.splits.parts
    for name, part in parts.items():
        lengths = {len(part.images), len(part.labels), len(part.names), len(part.groups)}
        require(
            len(lengths) == 1, f"{name}: images, labels, names and groups must be equally many, got {sorted(lengths)}."
        )
    require(len(parts["train"]), "train must not be empty.")
    require(fixture.splits.rule, "Splits.rule must describe how the parts were made.")
    return ", ".join(f"{len(part):,} {name}" for name, part in parts.items())


def the_card_is_complete(fixture: DatasetFixture) -> str:
    """The card has title, modality, licence, source and at least two classes, without repetition."""
    card = fixture.card
    empty = [name for name in ("title", "modality", "licence", "source") if not getattr(card, name).strip()]
    require(not empty, f"The card must have a {listed(empty)}.")
    least = 1 if card.task == "multi_label" else 2
    require(len(card.classes) >= least, f"The card must have at least {least} classes, got {len(card.classes)}.")
    require(len(set(card.classes)) == len(card.classes), "The card must name each class once.")
    return f"{card.title}: {len(card.classes)} classes, {card.licence}"


def labels_are_in_range(fixture: DatasetFixture) -> str:
    """Labels are integers below the number of classes, each of them in train; multi-label ones are 0 or 1."""
    count, several = len(fixture.card.classes), fixture.card.task == "multi_label"
    for name, part in fixture.splits.parts.items():
        labels, bound = part.labels, 2 if several else count
        require(np.issubdtype(labels.dtype, np.integer), f"{name}: labels must be integers, got {labels.dtype}.")
        shape = (len(part), count) if several else (len(part),)
        require(labels.shape == shape, f"{name}: labels must have the shape {shape}, got {labels.shape}.")
        inside = not labels.size or (labels.min() >= 0 and labels.max() < bound)
        require(inside, f"{name}: labels must lie in 0..{bound - 1}.")
    train = fixture.splits.train.labels
    seen = set(np.flatnonzero(train.max(0)).tolist()) if several else set(train.tolist())
    absent = sorted(set(range(count)) - seen)
    require(
        not absent,
        f"train must have images of every class, has none of {listed([fixture.card.classes[i] for i in absent])}.",
    )
    return f"All {count} classes in train."


def no_image_lies_in_two_parts(fixture: DatasetFixture) -> str:
    """Image names are unique over all parts."""
    names = [name for part in fixture.splits.parts.values() for name in part.names]
    twice = len(names) - len(set(names))
    require(not twice, f"Image names must be unique, {twice} occur again.")
    return f"{len(names):,} unique names."


def groups_do_not_cross(fixture: DatasetFixture) -> str:
    """All images of a group are in one part, or a note gives the number of exceptions."""
    key = fixture.card.group_key
    if not key:
        raise Skipped("The data set has no groups (group_key is empty).")
    held = [set(part.groups) for part in fixture.splits.parts.values()]
    crossing = (held[0] & held[1]) | (held[0] & held[2]) | (held[1] & held[2])
    noted = [note for note in fixture.splits.notes if key in note]
    require(noted or not crossing, f"{len(crossing)} groups ({key}) are in two parts; a note must state that.")
    return noted[0] if crossing else f"Each {key} is in one part."


def the_same_seed_gives_the_same_parts(fixture: DatasetFixture) -> str:
    """Loading again with the same seed gives the same names, labels and groups in the same order."""
    again = fixture.dataset.load(fixture.root, 0)
    differ = [
        name for name, part in fixture.splits.parts.items() if _comparable(part) != _comparable(again.parts[name])
    ]
    require(not differ, f"Loaded twice with the same seed, {listed(differ)} must be equal.")
    require(again.rule == fixture.splits.rule, "Loaded twice with the same seed, Splits.rule must be equal.")
    return "Equal names, labels, groups and order."


def its_images_open(fixture: DatasetFixture) -> str:
    """The first and the last image of each part are 8-bit RGB."""
    opened = 0
    for name, part in fixture.splits.parts.items():
        for place in {0, len(part) - 1} if len(part) else ():
            shape = _pixels(part, place).shape
            rgb = len(shape) == 3 and shape[2] == 3  # noqa: PLR2004 - (height, width, 3)
            require(rgb, f"{name}: image {place} must have the shape (height, width, 3), got {shape}.")
            opened += 1
    return f"{opened} images opened."


def _pixels(part: Part, place: int) -> NDArray[np.uint8]:
    image = part.images[place]
    return image if isinstance(image, np.ndarray) else np.asarray(open_picture(image))


def _comparable(part: Part) -> tuple[object, ...]:
    return part.names, part.labels.tolist(), part.groups


def importing_it_needs_no_torch(fixture: DatasetFixture) -> str:
    """Importing the module does not import torch, as `peftbench list` and the reports load every data set."""
    return refuse_torch(type(fixture.dataset).__module__)


RULES: tuple[Rule[DatasetFixture], ...] = (
    it_loads,
    the_card_is_complete,
    labels_are_in_range,
    no_image_lies_in_two_parts,
    groups_do_not_cross,
    the_same_seed_gives_the_same_parts,
    its_images_open,
    importing_it_needs_no_torch,
)


def check_dataset(dataset: Dataset, root: Path) -> list[Finding]:
    """Return every rule's finding; without the files under `root`, all are skipped with how to get them."""
    return list(run_rules(RULES, DatasetFixture(dataset, root)))
