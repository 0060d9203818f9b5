"""BUSI (Al-Dhabyani et al., 2020): breast ultrasound, 780 images in three classes and no official split.

It holds many images more than once, so that a random split leaks. Here near duplicates stay in one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peftbench.core.catalogue import dataset_card
from peftbench.core.contract import DatasetCard, Presence, Splits
from peftbench.data import image_files
from peftbench.data.image_io import open_picture
from peftbench.data.near_duplicates import ALIKE, Thumbnails, alike, thumbnail
from peftbench.data.raster import UndecodableError
from peftbench.data.splits import join_duplicates, join_pairs, split
from peftbench.datasets import _files
from peftbench.errors import BrokenImagesError

NAME = "busi"
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


class Busi:
    """All images without their masks, 70/10/20."""

    @property
    def card(self) -> DatasetCard:
        """Its entry in the catalogue."""
        return dataset_card(NAME)

    def presence(self, root: Path) -> Presence:
        """Return how many images are here, masks excluded."""
        classes = self.card.classes
        return _files.presence(root, NAME, classes, lambda home: sum(len(_images(home / label)) for label in classes))

    def load(self, root: Path, seed: int) -> Splits:
        """Group near duplicates, then split. Raises MissingDataError and BrokenImagesError."""
        home = _files.find_home(root, NAME, self.card.classes)
        by_class = [_images(home / label) for label in self.card.classes]
        files = [file for one_class in by_class for file in one_class]
        labels = [label for label, one_class in enumerate(by_class) for _ in one_class]
        same, pairs = _files.digests(files), near_duplicates(files)
        names = [file.relative_to(home).as_posix() for file in files]
        whole = _files.part_of_files(home, files, labels, join_duplicates(same, join_pairs(pairs, names)))
        cuts = split(whole.labels, whole.groups, tuple(SHARES.values()), seed)
        parts = {name: whole.take(cut) for name, cut in zip(SHARES, cuts, strict=True)}
        rule = f"70/10/20 stratified, grouped by {self.card.group_key}"
        notes = (*_files.size_notes(NAME, parts), *_duplicate_notes(labels, same, pairs))
        return _files.assemble(parts, self.card, rule, notes)


def near_duplicates(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Return the pairs i < j of images whose thumbnails correlate above ALIKE."""
    return [(i, j) for i, j, _ in alike(np.stack([_thumbnail(file) for file in files]), ALIKE)]


def _images(folder: Path) -> list[Path]:
    return [file for file in image_files.images_in(folder) if "_mask" not in file.stem]


def _thumbnail(file: Path) -> Thumbnails:
    try:
        return thumbnail(open_picture(file))
    except UndecodableError as error:
        raise BrokenImagesError(f"Cannot decode {file}: {error}. Download it again.") from None


def _duplicate_notes(labels: Sequence[int], same: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    across = sum(labels[i] != labels[j] for i, j in pairs)
    twice = len(_files.contradicting(labels, same))
    near = f"Pairs of near duplicates, each kept in one part: {len(pairs)}, {across} of them across classes."
    clash = f"Byte-identical images with contradicting labels, kept in one part: {twice}."
    return [near] * bool(pairs) + [clash] * bool(twice)


plugin = Busi()
