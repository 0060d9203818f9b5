"""`folder:PATH`: the user's own images in class folders, optionally inside train, val and test folders.

    PATH/benign/*.png                PATH/train/benign/*.png
    PATH/malignant/*.dcm             PATH/val/benign/*.png, PATH/test/...

Classes are labeled in natural order, grade 2 before grade 10. Given parts are kept; missing parts are split off,
stratified by class. Files with the same bytes stay together, and so do the images of a patient if DICOM files state
one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbench.core.contract import DatasetCard, Part, Splits
from peftbench.data import dicom, image_files
from peftbench.datasets import _files, _own
from peftbench.errors import DataError, MissingDataError, SplitError


@dataclass(frozen=True)
class Folder:
    """The images under `path`, which is relative to the working folder or starts with `~`."""

    path: str

    @property
    def home(self) -> Path:
        """The absolute path of the folder."""
        return _own.resolve_path(self.path)

    @property
    def card(self) -> DatasetCard:
        """Its classes are the class folders. Raises as `load` does."""
        return DatasetCard(
            title=f"folder {self.home.name}",
            modality="unknown",
            classes=classes_of(self.home),
            licence="the user's own",
            source="a folder of the user's",
            group_key=key_of(self.home),
        )

    def load(self, root: Path, seed: int) -> Splits:  # noqa: ARG002  the path does not depend on the data folder
        """Read the class folders and split off missing parts.

        Raises MissingDataError (no such folder), DataError (no classes, an empty class, DICOM without pydicom) and
        SplitError (a class without training images).
        """
        card = self.card
        return _own.make_splits(read(self.home, card.classes), card, seed)


def classes_of(home: Path) -> tuple[str, ...]:
    """Return the class folders in natural order. Raises as `Folder.load` does."""
    return _classes(_layout(home)[0])


def key_of(home: Path) -> str:
    """Return the group key: the patient if DICOM files state several, else ""."""
    folders, _ = _layout(home)
    files = (file for folder in folders.values() for file in image_files.images_in(folder))
    return _own.PATIENT if dicom.states_patients(list(files)) else ""


def read(home: Path, classes: tuple[str, ...]) -> _own.Given:
    """Return the images of the class folders `classes`, labeled in that order."""
    folders, ignored = _layout(home)
    beside = (f"Folders beside the parts are left out: {len(ignored)}.",) if ignored else ()
    of_classes = [folder / label for folder in folders.values() for label in classes]
    notes = (*beside, *image_files.other_files(of_classes), *_ambiguous_layout(of_classes))
    outside = _outside(home, list(folders.values()), ignored)
    notes += (f"Images outside of the class folders, left out: {len(outside)}.",) if outside else ()
    parts = {name: _part(home, folder, classes) for name, folder in folders.items()}
    given = _own.Given(classes, parts, notes, tuple(file.relative_to(home).as_posix() for file in outside))
    return _own.grouped_by_patient(given) if key_of(home) else given


def _outside(home: Path, parts: Sequence[Path], ignored: Sequence[Path]) -> list[Path]:
    """Return the images outside of the class folders: in `home`, in the parts themselves and in ignored folders."""
    beside = [file for folder in dict.fromkeys((home, *parts)) for file in image_files.images_directly_in(folder)]
    return beside + [file for folder in ignored for file in image_files.images_in(folder)]


def _ambiguous_layout(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return a note if all class folders hold folders of the same names, which may be the classes, or patients."""
    below = [frozenset(child.name for child in image_files.subfolders(folder)) for folder in folders if folder.is_dir()]
    shared = sorted(frozenset.intersection(*below))
    note = f"Every class folder holds the same {len(shared)} folders. If those are the classes, use a table instead."
    return (note,) if len(shared) > 1 else ()


def _layout(home: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return folders by part (`train`, `val`, `test`, or `all` without parts), and the other folders beside them."""
    if not home.is_dir():
        raise MissingDataError(f"{home} is not a folder. Give a folder of class folders: folder:PATH.")
    below = image_files.subfolders(home)
    named = [folder for folder in below if folder.name.lower() in _own.NAMES]
    parts = {_own.NAMES[folder.name.lower()]: folder for folder in named}
    if not named or (len(named) < len(below) and "train" not in parts):
        return {"all": home}, []
    twice = [folder.name for folder in named if parts[_own.NAMES[folder.name.lower()]] != folder]
    if twice:
        raise DataError(
            f"{home} holds two folders for the part {_own.NAMES[twice[0].lower()]}, one is {twice[0]}. Merge them."
        )
    if "train" not in parts:
        raise DataError(f"{home} holds {', '.join(f.name for f in named)} but no folder train. Add it.")
    others = [folder for folder in below if folder not in named]
    return ({"all": parts["train"]} if len(parts) == 1 else parts), others


def _classes(folders: Mapping[str, Path]) -> tuple[str, ...]:
    """Return the class folders of train. Raises if there is only one, or if another part holds a further one."""
    names = {part: [child.name for child in image_files.subfolders(folder)] for part, folder in folders.items()}
    train = names["all" if "all" in names else "train"]
    if len(train) < 2:  # noqa: PLR2004  a classification needs two classes
        where = folders["all" if "all" in folders else "train"]
        raise DataError(f"{where} must hold at least two class folders, got {len(train)}. Give the folder above them.")
    for part, found in names.items():
        unknown = sorted(set(found) - set(train))
        if unknown:
            raise SplitError(
                f"{folders[part]} holds class {unknown[0]!r}, which {folders['train']} lacks. Add or remove it."
            )
    if doubles := [name for name, times in Counter(map(_own.class_name, train)).items() if times > 1]:
        raise DataError(f"{next(iter(folders.values()))} holds two folders of the class {doubles[0]!r}. Merge them.")
    return _own.in_order(train)


def _part(home: Path, folder: Path, classes: tuple[str, ...]) -> Part:
    by_class = [_images(folder / label) for label in classes]
    files = [file for one_class in by_class for file in one_class]
    return _files.part_of_files(home, files, [label for label, one_class in enumerate(by_class) for _ in one_class])


def _images(folder: Path) -> list[Path]:
    """Return the images of a class folder, [] if the part has no such folder. Raises DataError for an empty folder."""
    files = image_files.images_in(folder)
    if folder.is_dir() and not files:
        raise DataError(f"{folder} holds no image ({', '.join(sorted(image_files.EXTENSIONS))}). Fill or remove it.")
    return files


plugin = Folder
