"""Decode image files to pixels of the network's input size, in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peftbench.core.contract import Part, Preprocessing
from peftbench.data.image_io import open_picture, quiet_decoders
from peftbench.data.raster import UndecodableError

MAX_ASPECT = 1000  # long side over short side; a more extreme image would fill the memory when resized
CHUNK = 32  # images between two progress updates
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

OnImages: TypeAlias = Callable[[int, int], None]  # images done, images in all
OnDecoded: TypeAlias = Callable[[int], None]  # images decoded since the last call


def decode(
    part: Part, preprocessing: Preprocessing, out: NDArray[np.uint8] | None = None, tick: OnDecoded | None = None
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Return the pixels (n, 3, size, size) of a part, and position -> reason of the images that fail (left black).

    Pixels are written into `out` if given, which may be memory-mapped: only a few images are in memory at a time.
    """
    side = preprocessing.size
    out = np.zeros((len(part), 3, side, side), np.uint8) if out is None else out
    failed: dict[int, str] = {}

    def decode_chunk(positions: Sequence[int]) -> int:
        for i in positions:
            try:
                out[i] = _open(part.images[i], preprocessing)
            except UndecodableError as error:
                failed[i] = str(error)
        return len(positions)

    chunks = [range(i, min(i + CHUNK, len(part))) for i in range(0, len(part), CHUNK)]
    with quiet_decoders(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done in pool.map(decode_chunk, chunks):
            if tick:
                tick(done)
    return out, dict(sorted(failed.items()))


def _open(image: Path | NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return one image as (3, size, size) uint8; grey becomes three equal channels."""
    picture = open_picture(image) if isinstance(image, Path) else Image.fromarray(image).convert("RGB")
    return np.asarray(to_square(picture, preprocessing)).transpose(2, 0, 1)


def to_square(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return a picture as a square of the network's input size: squashed, or resized by its short side and cropped.

    Raises UndecodableError for an aspect ratio of MAX_ASPECT or more.
    """
    if max(picture.size) >= MAX_ASPECT * min(picture.size):
        raise UndecodableError(f"{picture.width} x {picture.height} px, a side ratio above {MAX_ASPECT}")
    side, resample = preprocessing.size, _FILTERS[preprocessing.interpolation]
    if preprocessing.fit == "squash":
        return picture.resize((side, side), resample)
    scale = int(side / preprocessing.crop) / min(picture.size)
    wide, high = (max(side, round(length * scale)) for length in picture.size)
    left, top = (wide - side) // 2, (high - side) // 2
    return picture.resize((wide, high), resample).crop((left, top, left + side, top + side))
