"""LIMUC (Polat et al., 2022): colonoscopy of ulcerative colitis, graded Mayo 0 to 3, with its official test patients.

If the ten official fold lists are here, fold `seed % 10` of the train-and-validation patients is the validation part;
otherwise a tenth of those patients.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from peftbench.core.catalogue import dataset_card
from peftbench.core.contract import DatasetCard, Part, Presence, Splits
from peftbench.data import image_files
from peftbench.data.splits import carve
from peftbench.datasets import _files
from peftbench.errors import DataError

NAME = "limuc"
TRAIN, TEST = "train_and_validation_sets", "test_set"
PATIENT = re.compile(r"UC_(patient_\d+)_\d+")
LISTS = "cross_validation_folds_train_val_info"
FOLDS = 10


class Limuc:
    """The official test part, and a validation part of whole patients from the rest."""

    @property
    def card(self) -> DatasetCard:
        """Its entry in the catalogue."""
        return dataset_card(NAME)

    @property
    def _needed(self) -> list[str]:
        return [f"{part}/{label}" for part in (TRAIN, TEST) for label in self.card.classes]

    def presence(self, root: Path) -> Presence:
        """Return how many images of all grades are here."""
        return _files.presence(root, NAME, self._needed, lambda home: image_files.count_images(home, (TRAIN, TEST)))

    def load(self, root: Path, seed: int) -> Splits:
        """Read grades from folders and patients from names. Raises MissingDataError and DataError."""
        home = _files.find_home(root, NAME, self._needed)
        whole, test = (_part(home, folder, self.card.classes) for folder in (TRAIN, TEST))
        lists = _fold(root / NAME, seed % FOLDS)
        train, val = _held_out(whole, lists) if lists else carve(whole, 1 / FOLDS, seed)
        way = f"fold {seed % FOLDS} of the official {FOLDS}" if lists else "10% of the others"
        parts = {"train": train, "val": val, "test": test}
        rule = f"official test, {way} for validation, grouped by {self.card.group_key}"
        return _files.assemble(parts, self.card, rule, _files.size_notes(NAME, parts), carved=True)


def patient(name: str) -> str:
    """Return the patient from a file name such as `UC_patient_155_28.bmp`."""
    known = PATIENT.match(name)
    if not known:
        raise DataError(f"{name}: the name must have the form UC_patient_NUMBER_NUMBER. Rename or remove it.")
    return known[1]


def _part(home: Path, folder: str, classes: tuple[str, ...]) -> Part:
    by_class = [image_files.images_in(_files.below(home, f"{folder}/{label}")) for label in classes]
    files = [file for one_class in by_class for file in one_class]
    labels = [label for label, one_class in enumerate(by_class) for _ in one_class]
    return _files.part_of_files(home, files, labels, [patient(file.name) for file in files])


def _fold(top: Path, number: int) -> Path | None:
    """Return the validation list of a fold, or None."""
    return next(iter(sorted(_lists(top, number))), None)


def _lists(top: Path, number: int) -> Iterator[Path]:
    tail = Path(LISTS, f"fold_{number}", "val.json")
    return (folder / tail for folder in _files.folders(top) if (folder / tail).is_file())


def _held_out(whole: Part, file: Path) -> tuple[Part, Part]:
    """Split off the images named in the list, `{"Mayo 0": ["UC_patient_155_28.bmp", ...], ...}`."""
    try:
        names = TypeAdapter(dict[str, list[str]]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataError(f"Invalid list {file}: {error.errors()[0]['msg']}. Download it again.") from None
    held = {name for grade in names.values() for name in grade}
    is_held = np.asarray([Path(name).name in held for name in whole.names])
    if not is_held.any() or is_held.all():
        raise DataError(f"{file} must name some of the {len(whole)} images, got {is_held.sum()}. Download it again.")
    return whole.take(np.flatnonzero(~is_held)), whole.take(np.flatnonzero(is_held))


plugin = Limuc()
