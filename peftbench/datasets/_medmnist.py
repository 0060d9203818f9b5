"""MedMNIST+'s files as the package medmnist downloads them, read without it (it imports torch).

NAME.npz at 28 pixels, NAME_64.npz and so on at the others, in root/medmnist. Each is held to the published checksum
and unpacked once beside itself, so that its arrays are read from the disk as they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peftbench.core.catalogue import dataset_entry
from peftbench.core.contract import INCOMPLETE, PARTS, Part, Presence
from peftbench.data.download import checksum
from peftbench.errors import DataError, MissingDataError
from peftbench.storage import archives

COLLECTION = "medmnist"
SIDES = (28, 64, 128, 224)  # pixels
NO_GROUPS = "The validation split states no patient grouping: images of one patient may lie in train and val."


def file_of(root: Path, name: str, side: int) -> Path:
    """Where a set's file belongs."""
    return root / COLLECTION / (f"{name}.npz" if side == SIDES[0] else f"{name}_{side}.npz")


def sides_here(root: Path, name: str) -> tuple[int, ...]:
    """The sizes of a set that are here, packed or unpacked, ascending."""
    files = {side: file_of(root, name, side) for side in SIDES}
    return tuple(side for side, file in files.items() if file.is_file() or archives.place(file).is_dir())


def presence(root: Path, name: str, side: int) -> Presence:
    """All or nothing while it is packed, for it is one file; then as many images as have labels."""
    every, folder = published_count(name), archives.place(file_of(root, name, side))
    if not folder.is_dir():
        return Presence(every if side in sides_here(root, name) else 0, every)
    with suppress(DataError):  # running it says what is wrong with it
        return Presence(sum(len(_array(folder / f"{part}_labels.npy")) for part in PARTS), every)
    return Presence(0, every)


def published_count(name: str) -> int:
    """The images that are published."""
    return sum(dataset_entry(COLLECTION).members[name].sizes.values())


def notes(name: str, side: int, parts: Mapping[str, Part]) -> tuple[str, ...]:
    """What a reader must know of any of these sets."""
    found = sum(map(len, parts.values()))
    lacks = f"{INCOMPLETE}: {found} of {published_count(name)} images are here."
    title = dataset_entry(COLLECTION).members[name].title
    about = (f"These are {title}'s images of {side} x {side} pixels.", NO_GROUPS)
    return (lacks, *about) if found < published_count(name) else about


def read(root: Path, name: str, side: int) -> dict[str, Part]:
    """The three published parts, images of SIDE x SIDE pixels, each a group of its own.

    Raises MissingDataError and DataError (a checksum or a content that is not the published one).
    """
    file = file_of(root, name, side)
    if side not in sides_here(root, name):
        entry = dataset_entry(COLLECTION)
        raise MissingDataError(f"{entry.title}: {file} does not exist. {entry.how_to_get}")
    if not archives.place(file).is_dir():
        _verify(file)
    folder = archives.unpack(file)
    return {part: _part(folder, name, part) for part in PARTS}


def _verify(file: Path) -> None:
    if f"md5:{checksum(file, 'md5')}" != dataset_entry(COLLECTION).checksums[file.name]:
        raise DataError(f"{file} has not the checksum that MedMNIST publishes; delete it and download it again.")


def _part(folder: Path, name: str, part: str) -> Part:
    task, classes = dataset_entry(COLLECTION).members[name].task, len(dataset_entry(COLLECTION).members[name].classes)
    images, given = (_array(folder / f"{part}_{kind}.npy") for kind in ("images", "labels"))
    labels = np.asarray(given, np.int64)
    if task != "multi_label":
        labels = labels.reshape(-1)
    names = tuple(f"{name}/{part}/{i}" for i in range(len(labels)))
    highest = 1 if task == "multi_label" else classes - 1
    if len(images) != len(labels) or labels.min(initial=0) < 0 or labels.max(initial=0) > highest:
        raise DataError(f"{folder} does not hold what MedMNIST publishes; delete it and download {folder.name}.npz.")
    return Part(_coloured(images), labels, names, names)


def _array(file: Path) -> NDArray[np.uint8]:
    """Memory-mapped; never unpickled."""
    try:
        array: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); delete its folder and download the set again.") from None
    return array


def _coloured(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, H, W, 3); greys (n, H, W) three times over, which costs no memory."""
    return images if images.ndim == 4 else np.broadcast_to(images[..., None], (*images.shape, 3))  # noqa: PLR2004
