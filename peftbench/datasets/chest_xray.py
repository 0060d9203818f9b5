"""Kermany's chest X-rays (2018) in three classes, the kind of pneumonia read from the file name.

Train and test are official. The 16 images in the val folder of the Kaggle copy are too few for model selection: they
join train, and a tenth of train, whole patients, becomes the validation part.
"""

from __future__ import annotations

import re
from pathlib import Path

from peftbench.core.catalogue import dataset_card
from peftbench.core.contract import PARTS, DatasetCard, Part, Presence, Splits
from peftbench.data import image_files
from peftbench.data.splits import carve, join_duplicates
from peftbench.datasets import _files
from peftbench.errors import DataError

NAME = "chest_xray"
NEEDED = tuple(f"{part}/{kind}" for part in ("train", "test") for kind in ("NORMAL", "PNEUMONIA"))
VAL_SHARE = 0.1
LABELS = {"normal": 0, "bacteria": 1, "virus": 2}
PNEUMONIA = re.compile(r"(person\d+)_(bacteria|virus)_")
NORMAL = re.compile(r"(?:NORMAL\d*-)?IM-\d+")  # NORMAL2-IM-1423-0001.jpeg: series, patient, image
ORIGINAL = re.compile(r"(NORMAL|BACTERIA|VIRUS)-(\d+)-\d+")  # BACTERIA-1008087-0001.jpeg: kind, patient, image


class ChestXray:
    """The official train and test parts, with a validation part split off train."""

    @property
    def card(self) -> DatasetCard:
        """Its entry in the catalogue."""
        return dataset_card(NAME)

    def presence(self, root: Path) -> Presence:
        """Return how many images are in train, test and the val folder of the Kaggle copy."""
        return _files.presence(root, NAME, NEEDED, lambda home: image_files.count_images(home, PARTS))

    def load(self, root: Path, seed: int) -> Splits:
        """Read labels and patients from the names. Raises MissingDataError, DataError for unknown names."""
        home = _files.find_home(root, NAME, NEEDED)
        extra = image_files.images_in(home / "val")
        train, test = _parts(home, image_files.images_in(home / "train") + extra, image_files.images_in(home / "test"))
        train, val = carve(train, VAL_SHARE, seed)
        rule = f"official train and test, 10% of train for validation, grouped by {self.card.group_key}"
        joined = (f"The {len(extra)} images of the val folder joined train.",) if extra else ()
        parts = {"train": train, "val": val, "test": test}
        notes = (*_files.size_notes(NAME, parts), *joined)
        return _files.assemble(parts, self.card, rule, notes, carved=True)


def label_and_patient(name: str) -> tuple[int, str]:
    """Return class index and patient of a file from its path below the data set's folder.

    In the original release patient numbers are global. In the Kaggle copy they restart in every folder and kind, so
    both are part of the key: `train/bacteria/person12`.
    """
    folder, kind, file = Path(name).parts[-3:]
    if original := ORIGINAL.match(file):
        return LABELS[original[1].lower()], f"patient {original[2]}"
    folder = "train" if folder == "val" else folder  # the Kaggle copy's val folder was taken from train
    if kind == "NORMAL":
        known = NORMAL.match(file)
        return 0, f"{folder}/normal/{known[0] if known else file}"
    sick = PNEUMONIA.match(file)
    if not sick:
        raise DataError(f"{name}: the name of a PNEUMONIA image must contain bacteria or virus. Rename or remove it.")
    return LABELS[sick[2]], f"{folder}/{sick[2]}/{sick[1]}"


def _parts(home: Path, train: list[Path], test: list[Path]) -> tuple[Part, Part]:
    """Return both parts; patients that share a byte-identical file are merged."""
    files = train + test
    facts = [label_and_patient(file.relative_to(home).as_posix()) for file in files]
    groups = join_duplicates(_files.digests(files), [patient for _, patient in facts])
    whole = _files.part_of_files(home, files, [label for label, _ in facts], groups)
    return whole.take(range(len(train))), whole.take(range(len(train), len(files)))


plugin = ChestXray()
