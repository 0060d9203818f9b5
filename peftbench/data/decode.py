"""From image files to pixels of the network's size, in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peftbench.core.contract import Part, Preprocessing
from peftbench.data.image_io import open_picture, to_rgb

LONGEST = 1000  # times the short side: fitted to the network, a longer image would fill the memory
CHUNK = 32  # images between two looks at the progress
BROKEN = (OSError, ValueError)  # what a file that does not open raises
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

Tick = Callable[[int], None]  # images done since the last


def decode(
    part: Part, preprocessing: Preprocessing, out: NDArray[np.uint8] | None = None, tick: Tick | None = None
) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels (n, 3, size, size) of a part, and the positions of the images that do not open (left black).

    Written into `out` if given, which may lie on the disk: no more than a few images are held in memory.
    """
    side = preprocessing.size
    out = np.zeros((len(part), 3, side, side), np.uint8) if out is None else out
    bad: list[int] = []

    def some(places: Sequence[int]) -> int:
        for i in places:
            try:
                out[i] = _open(part.images[i], preprocessing)
            except BROKEN:
                bad.append(i)
        return len(places)

    chunks = [range(i, min(i + CHUNK, len(part))) for i in range(0, len(part), CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done in pool.map(some, chunks):
            if tick:
                tick(done)
    return out, sorted(bad)


def _open(image: Path | NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One image as (3, size, size), whatever its mode; grey becomes three equal channels."""
    picture = open_picture(image) if isinstance(image, Path) else to_rgb(Image.fromarray(image))
    return np.asarray(to_square(picture, preprocessing)).transpose(2, 0, 1)


def to_square(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """A square picture of the network's size: squashed, or its short side fitted and the middle cut out.

    Raises ValueError for a picture LONGEST times as long as wide.
    """
    if max(picture.size) >= LONGEST * min(picture.size):
        raise ValueError(f"{picture.width} x {picture.height} px are no picture")
    side, resample = preprocessing.size, _FILTERS[preprocessing.interpolation]
    if preprocessing.fit == "squash":
        return picture.resize((side, side), resample)
    scale = side / min(picture.size)
    wide, high = (max(side, round(length * scale)) for length in picture.size)
    left, top = (wide - side) // 2, (high - side) // 2
    return picture.resize((wide, high), resample).crop((left, top, left + side, top + side))
