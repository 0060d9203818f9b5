"""Kermany's retinal OCT (2018) in four classes: the original release, or OCTMNIST's copy at 224 pixels.

Train and test are official; a tenth of train, whole patients, becomes the validation part. The 32 images in
the val folder of the Kaggle copy belong to the official 1,000 test images and join test.
"""

from __future__ import annotations

import re
from pathlib import Path

from peftbench.core.catalogue import dataset_card
from peftbench.core.contract import PARTS, DatasetCard, Part, Presence, Splits
from peftbench.data import image_files
from peftbench.data.splits import carve
from peftbench.datasets import _files, _medmnist
from peftbench.errors import DataError

NAME = "oct"
FOLDERS = ("CNV", "DME", "DRUSEN", "NORMAL")  # in label order
NEEDED = tuple(f"{part}/{label}" for part in ("train", "test") for label in FOLDERS)
COPY, COPY_SIDE = "octmnist", 224
VAL_SHARE = 0.1
PATIENT = re.compile(r"(?:CNV|DME|DRUSEN|NORMAL)-(\d+)-\d+", re.IGNORECASE)


class Oct:
    """The official train and test parts, with a validation part split off train; or OCTMNIST's three parts."""

    @property
    def card(self) -> DatasetCard:
        """Its entry in the catalogue."""
        return dataset_card(NAME)

    def presence(self, root: Path) -> Presence:
        """Return how many images of the original release are here, or of OCTMNIST if that is used."""
        return _medmnist.presence(root, COPY, COPY_SIDE) if _use_octmnist(root) else _release(root)

    def load(self, root: Path, seed: int) -> Splits:
        """Read labels from folders, patients from names.

        Raises MissingDataError, DataError for a name without a patient.
        """
        if _use_octmnist(root):
            parts = _medmnist.read(root, COPY, COPY_SIDE)
            return _files.assemble(parts, self.card, "official (OCTMNIST)", _medmnist.notes(COPY, COPY_SIDE, parts))
        home = _files.find_home(root, NAME, NEEDED)
        train, test, more = (_part(home, part) for part in ("train", "test", "val"))
        train, val = carve(train, VAL_SHARE, seed)
        parts = {"train": train, "val": val, "test": test.joined(more)}
        joined = (f"The {len(more)} images of the val folder joined test.",) if len(more) else ()
        rule = f"official train and test, 10% of train for validation, grouped by {self.card.group_key}"
        return _files.assemble(parts, self.card, rule, (*_files.size_notes(NAME, parts), *joined), carved=True)


def _release(root: Path) -> Presence:
    return _files.presence(root, NAME, NEEDED, lambda home: image_files.count_images(home, PARTS))


def _use_octmnist(root: Path) -> bool:
    """Return whether to use OCTMNIST: it is here, and the original release is missing or only a sample."""
    release, copy = _release(root), _medmnist.presence(root, COPY, COPY_SIDE)
    return not (release.complete or release.packed) and (copy.complete or copy.found > release.found)


def patient(name: str) -> str:
    """Return the patient from a file name such as `CNV-1016042-1.jpeg`: class, patient, image."""
    known = PATIENT.match(name)
    if not known:
        raise DataError(f"{name}: the name must have the form CLASS-PATIENT-NUMBER. Rename or remove it.")
    return known[1]


def _part(home: Path, part: str) -> Part:
    by_class = [image_files.images_in(_files.below(home, f"{part}/{label}")) for label in FOLDERS]
    files = [file for one_class in by_class for file in one_class]
    labels = [label for label, one_class in enumerate(by_class) for _ in one_class]
    return _files.part_of_files(home, files, labels, [patient(file.name) for file in files])


plugin = Oct()
