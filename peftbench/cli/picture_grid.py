"""A sheet of pictures of a data set: a row for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from peftbench.core.contract import Part, Splits
from peftbench.data.image_io import open_picture

TILE, COLUMNS, BAND = 112, 8, 16  # pixels of a picture, pictures per class, pixels of a heading
GREY = (24, 24, 24)


def draw(splits: Splits, classes: tuple[str, ...]) -> Image.Image:
    """Return a sheet with COLUMNS pictures of each class under its name, evenly spaced over the train part."""
    sheet = Image.new("RGB", (COLUMNS * TILE, len(classes) * (TILE + BAND)), GREY)
    pen = ImageDraw.Draw(sheet)
    for label, name in enumerate(classes):
        top = label * (TILE + BAND)
        pen.text((2, top + 2), name, fill="white")
        for column, i in enumerate(_chosen(splits.train, label)):
            sheet.paste(_tile(splits.train.images[i]), (column * TILE, top + BAND))
    return sheet


def _chosen(part: Part, label: int) -> list[int]:
    """Return the positions of up to COLUMNS images of a class, evenly spaced."""
    is_shown = part.labels == label if part.labels.ndim == 1 else part.labels[:, label] > 0
    positions = np.flatnonzero(is_shown)
    places = np.linspace(0, len(positions) - 1, min(COLUMNS, len(positions))).round().astype(int)
    return [int(i) for i in positions[places]]


def _tile(image: Path | NDArray[np.uint8]) -> Image.Image:
    """Return a square that holds the whole image; a red line across it where the image cannot be decoded."""
    tile = Image.new("RGB", (TILE, TILE), GREY)
    try:
        picture = open_picture(image) if isinstance(image, Path) else Image.fromarray(image)
    except (OSError, ValueError, SyntaxError):
        ImageDraw.Draw(tile).line((0, 0, TILE, TILE), fill="red", width=3)
        return tile
    picture.thumbnail((TILE - 2, TILE - 2))
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return tile
