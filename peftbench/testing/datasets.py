"""check_dataset: a card to believe in, parts that do not overlap, labels that mean what the card says."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Dataset, DatasetCard, Part, Splits
from peftbench.data.image_io import open_picture
from peftbench.errors import MissingDataError
from peftbench.testing.findings import Finding, Rule, Skipped, demand, judge, refuse_torch


class Shelf:
    """A data set, where its files lie, and its parts once they were read."""

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self.dataset, self.root = dataset, root

    @cached_property
    def splits(self) -> Splits:
        """Of seed 0. Skips the rule where the files are not on this machine."""
        try:
            return self.dataset.load(self.root, 0)
        except MissingDataError as error:
            raise Skipped(str(error)) from None

    @property
    def card(self) -> DatasetCard:
        """What is said of it."""
        return self.dataset.card


def it_loads(shelf: Shelf) -> str:
    """Three parts, train the one that is never empty; images, labels, names and groups of one length."""
    parts = shelf.splits.parts
    for name, part in parts.items():
        lengths = {len(part.images), len(part.labels), len(part.names), len(part.groups)}
        demand(len(lengths) == 1, f"Images, labels, names and groups of {name} differ in number: {sorted(lengths)}.")
    demand(len(parts["train"]), "Its train part is empty.")
    demand(shelf.splits.rule, "It does not say by what rule its parts came about.")
    return ", ".join(f"{len(part):,} {name}" for name, part in parts.items())


def the_card_is_complete(shelf: Shelf) -> str:
    """Title, modality, licence, source and two classes or more, none twice."""
    card = shelf.card
    empty = [name for name in ("title", "modality", "licence", "source") if not getattr(card, name).strip()]
    demand(not empty, f"The card leaves {', '.join(empty)} empty.")
    least = 1 if card.task == "multi_label" else 2
    demand(len(card.classes) >= least, f"The card names {len(card.classes)} classes.")
    demand(len(set(card.classes)) == len(card.classes), "The card names a class twice.")
    return f"{card.title}: {len(card.classes)} classes, {card.licence}"


def labels_are_in_range(shelf: Shelf) -> str:
    """Whole numbers below the number of classes, each of them in train; of several labels an image, 0 or 1."""
    count, several = len(shelf.card.classes), shelf.card.task == "multi_label"
    for name, part in shelf.splits.parts.items():
        labels, bound = part.labels, 2 if several else count
        demand(np.issubdtype(labels.dtype, np.integer), f"The labels of {name} are {labels.dtype}, not integers.")
        shape = (len(part), count) if several else (len(part),)
        demand(labels.shape == shape, f"The labels of {name} have the shape {labels.shape}, not {shape}.")
        inside = not labels.size or (labels.min() >= 0 and labels.max() < bound)
        demand(inside, f"The labels of {name} lie outside of 0..{bound - 1}.")
    train = shelf.splits.train.labels
    met = set(np.flatnonzero(train.max(0)).tolist()) if several else set(train.tolist())
    absent = sorted(set(range(count)) - met)
    demand(not absent, f"Class {shelf.card.classes[absent[0]] if absent else ''!r} has no image in train.")
    return f"All of {count} classes in train."


def no_image_lies_in_two_parts(shelf: Shelf) -> str:
    """Names are unique over all parts."""
    names = [name for part in shelf.splits.parts.values() for name in part.names]
    twice = len(names) - len(set(names))
    demand(not twice, f"{twice} names occur more than once.")
    return f"{len(names):,} names, each once."


def groups_do_not_cross(shelf: Shelf) -> str:
    """Images of one patient lie in one part, or a note says how many do not."""
    key = shelf.card.group_key
    if not key:
        raise Skipped("Nothing is known of what belongs together (group_key is empty).")
    held = [set(part.groups) for part in shelf.splits.parts.values()]
    crossing = (held[0] & held[1]) | (held[0] & held[2]) | (held[1] & held[2])
    said = [note for note in shelf.splits.notes if key in note]
    demand(said or not crossing, f"{len(crossing)} groups ({key}) lie in two parts, and no note says so.")
    return said[0] if crossing else f"No {key} lies in two parts."


def the_same_seed_gives_the_same_parts(shelf: Shelf) -> str:
    """Loaded again, names, labels, groups and their order are the same."""
    again = shelf.dataset.load(shelf.root, 0)
    differ = [name for name, part in shelf.splits.parts.items() if _told(part) != _told(again.parts[name])]
    demand(not differ, f"Loaded again with the same seed, {', '.join(differ)} differs.")
    demand(again.rule == shelf.splits.rule, "Loaded again with the same seed, the rule of its parts differs.")
    return "Names, labels, groups and order agree."


def its_images_open(shelf: Shelf) -> str:
    """The first and the last image of each part are eight-bit RGB."""
    opened = 0
    for name, part in shelf.splits.parts.items():
        for place in {0, len(part) - 1} if len(part) else ():
            shape = _pixels(part, place).shape
            demand(len(shape) == 3 and shape[2] == 3, f"Image {place} of {name} has the shape {shape}.")  # noqa: PLR2004
            opened += 1
    return f"{opened} of them."


def _pixels(part: Part, place: int) -> NDArray[np.uint8]:
    image = part.images[place]
    return image if isinstance(image, np.ndarray) else np.asarray(open_picture(image))


def _told(part: Part) -> tuple[object, ...]:
    return part.names, part.labels.tolist(), part.groups


def importing_it_needs_no_torch(shelf: Shelf) -> str:
    """`peftbench list` and the reports load data sets and must answer at once."""
    return refuse_torch(type(shelf.dataset).__module__)


RULES: tuple[Rule[Shelf], ...] = (
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
    """Every rule's finding; all skipped, with the sentence that says why, where its files are not under `root`."""
    return list(judge(RULES, Shelf(dataset, root)))
