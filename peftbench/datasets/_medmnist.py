"""Read MedMNIST+ files without the package medmnist, which imports torch.

The files are NAME.npz at 28 pixels and NAME_64.npz etc. at other sizes, in root/medmnist. Each is checked against its
published checksum and unpacked once, so that its arrays can be memory-mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peftbench.core.catalogue import dataset_entry
from peftbench.core.contract import INCOMPLETE, PARTS, Part, Presence
from peftbench.data.availability import COLLECTION
from peftbench.errors import DataError, MissingDataError
from peftbench.storage import archives
from peftbench.storage.files import checksum

SIDES = (28, 64, 128, 224)  # pixels
NO_GROUPS = "No patient numbers are published: images of one patient may be in both train and val."


def file_of(root: Path, name: str, side: int) -> Path:
    """Return the path of a set's file."""
    return root / COLLECTION / (f"{name}.npz" if side == SIDES[0] else f"{name}_{side}.npz")


def sides_here(root: Path, name: str) -> tuple[int, ...]:
    """Return the image sizes of a set that are here, packed or unpacked, ascending."""
    files = {side: file_of(root, name, side) for side in SIDES}
    return tuple(side for side, file in files.items() if file.is_file() or archives.place(file).is_dir())


def presence(root: Path, name: str, side: int) -> Presence:
    """Return how many images of a set are here: all or none while packed (one file), else the number of labels."""
    total, folder = published_count(name), archives.place(file_of(root, name, side))
    if not folder.is_dir():
        return Presence(total if side in sides_here(root, name) else 0, total)
    with suppress(DataError):  # a run reports the error
        return Presence(sum(len(_array(folder / f"{part}_labels.npy")) for part in PARTS), total)
    return Presence(0, total)


def published_count(name: str) -> int:
    """Return the published number of images."""
    return sum(dataset_entry(COLLECTION).members[name].sizes.values())


def notes(name: str, side: int, parts: Mapping[str, Part]) -> tuple[str, ...]:
    """Return the notes on a set: a missing share of images, its image size, unknown patients."""
    found = sum(map(len, parts.values()))
    incomplete = f"{INCOMPLETE}: {found} of {published_count(name)} images are here."
    title = dataset_entry(COLLECTION).members[name].title
    about = (f"These are {title}'s images of {side} x {side} pixels.", NO_GROUPS)
    return (incomplete, *about) if found < published_count(name) else about


def read(root: Path, name: str, side: int) -> dict[str, Part]:
    """Return the three published parts with images of side x side pixels, each its own group.

    Raises MissingDataError, and DataError if checksum or content differ from the published ones.
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
        raise DataError(f"{file} does not match the checksum published by MedMNIST. Delete it and download it again.")


def _part(folder: Path, name: str, part: str) -> Part:
    task, classes = dataset_entry(COLLECTION).members[name].task, len(dataset_entry(COLLECTION).members[name].classes)
    images, given = (_array(folder / f"{part}_{kind}.npy") for kind in ("images", "labels"))
    labels = np.asarray(given, np.int64)
    if task != "multi_label":
        labels = labels.reshape(-1)
    names = tuple(f"{name}/{part}/{i}" for i in range(len(labels)))
    highest = 1 if task == "multi_label" else classes - 1
    if len(images) != len(labels) or labels.min(initial=0) < 0 or labels.max(initial=0) > highest:
        raise DataError(f"{folder} does not match the published set. Delete it and download {folder.name}.npz again.")
    return Part(_as_rgb(images), labels, names, names)


def _array(file: Path) -> NDArray[np.uint8]:
    """Return an array, memory-mapped and never unpickled."""
    try:
        array: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {file}: {error}. Delete its folder and download the set again.") from None
    return array


def _as_rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images as (n, H, W, 3); grey ones (n, H, W) are broadcast, which needs no memory."""
    return images if images.ndim == 4 else np.broadcast_to(images[..., None], (*images.shape, 3))  # noqa: PLR2004
