"""Small pictures and data sets made of them, for the tests of decoding and of what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peftbench.core.contract import DatasetCard, Part, Preprocessing, Splits
from peftbench.data.image_io import open_picture

SMALL = Preprocessing(8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CARD = DatasetCard("Drawn", "none", ("a", "b"), "none", "drawn for a test")
Pixels = NDArray[np.uint8]


def photo(seed: int = 0, side: int = 8) -> Pixels:
    """Colors at random (side, side, 3)."""
    return np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)


def part(files: Sequence[Path]) -> Part:
    names = tuple(file.name for file in files)
    return Part(list(files), np.arange(len(files)) % 2, names, names)


def splits(folder: Path, images: tuple[int, int, int] = (4, 2, 3)) -> Splits:
    """PNG files, each of another content."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{i}.png" for i in range(sum(images))]
    for i, file in enumerate(files):
        Image.fromarray(photo(i)).save(file)
    first, second = images[0], images[0] + images[1]
    return Splits(part(files[:first]), part(files[first:second]), part(files[second:]), "as drawn", ("a note",))


def shown(file: Path) -> NDArray[np.uint8]:
    """The first channel of a decoded file, all three being equal."""
    rgb = np.asarray(open_picture(file))
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]
