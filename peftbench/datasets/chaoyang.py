"""Chaoyang (Zhu et al., 2021): patches of colon slides in four classes, the official lists of 4,021 and 2,139 images.

They have no validation part: a tenth of train, whole slides, is split off.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from peftbench.core.catalogue import dataset_card
from peftbench.core.contract import DatasetCard, Part, Presence, Splits
from peftbench.data import image_files
from peftbench.data.splits import carve
from peftbench.datasets import _files
from peftbench.errors import DataError

NAME = "chaoyang"
NEEDED = ("train.json", "test.json", "train", "test")
VAL_SHARE = 0.1


class ListedImage(BaseModel):
    """An item of a list. The labels of the three pathologists beside it are not used."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str  # "train/535940-IMG009x022-2.JPG"
    label: int


class Chaoyang:
    """The official train and test lists, with a validation part split off train."""

    @property
    def card(self) -> DatasetCard:
        """Its entry in the catalogue."""
        return dataset_card(NAME)

    def presence(self, root: Path) -> Presence:
        """Return how many images are in the two folders."""
        return _files.presence(
            root, NAME, NEEDED, lambda home: sum(len(image_files.images_in(home / p)) for p in NEEDED[2:])
        )

    def load(self, root: Path, seed: int) -> Splits:
        """Read the lists. Raises MissingDataError, and DataError for an invalid list."""
        home = _files.find_home(root, NAME, NEEDED)
        train, test = (_part(home, part, len(self.card.classes)) for part in ("train", "test"))
        train, val = carve(train, VAL_SHARE, seed)
        parts = {"train": train, "val": val, "test": test}
        rule = f"official train and test, 10% of train for validation, grouped by {self.card.group_key}"
        return _files.assemble(parts, self.card, rule, _files.size_notes(NAME, parts), carved=True)


def slide(name: str) -> str:
    """Return the slide of a patch: its file name up to -IMG."""
    return re.sub(r"-IMG.*$", "", PurePosixPath(name).name)


def _part(home: Path, part: str, classes: int) -> Part:
    """Return the images of a list that exist."""
    entries = _entries(home / f"{part}.json", classes)
    exists = _files.are_present(NAME, [home / entry.name for entry in entries])
    found = [entry for entry, there in zip(entries, exists, strict=True) if there]
    files, labels = [home / entry.name for entry in found], [entry.label for entry in found]
    return _files.part_of_files(home, files, labels, [slide(entry.name) for entry in found])


def _entries(file: Path, classes: int) -> list[ListedImage]:
    try:
        entries = TypeAdapter(list[ListedImage]).validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file}: {where or 'the file'}: {first['msg']}. Download the list again.") from None
    for entry in entries:
        path = PurePosixPath(entry.name)
        if entry.label not in range(classes) or path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{file}: {json.dumps(entry.model_dump())} is not an image with a label from 0 to {classes - 1}."
            )
    return entries


plugin = Chaoyang()
