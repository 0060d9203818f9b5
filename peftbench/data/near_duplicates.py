"""Which images are nearly the same: small grey thumbnails that correlate.

Above the correlation ALIKE two images count as one picture twice, a threshold that breast ultrasound (BUSI) is known
by; between SIMILAR and ALIKE lie repeats and neighbouring slices, and images that merely look alike.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32  # pixels of a thumbnail
ALIKE = 0.995  # correlation of two thumbnails above which the images count as near duplicates
SIMILAR = 0.98  # above which they are worth a look
WAVES = 6  # a side: the lowest WAVES x WAVES cosines of a thumbnail are compared first
BLOCK = 1024  # thumbnails compared with all others at once

Thumbnails: TypeAlias = NDArray[np.float32]  # (n, SIDE * SIDE), each of mean 0 and length 1, or all 0


def thumbnail(picture: Image.Image) -> Thumbnails:
    """Grey values (SIDE * SIDE,) of mean 0 and length 1, so that a product of two is their correlation.

    An image of one grey is all 0: it correlates with nothing.
    """
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64).ravel()
    grey -= grey.mean()
    length = float(np.linalg.norm(grey))
    return np.asarray(grey / length if length else grey, np.float32)


def alike(thumbnails: Thumbnails, least: float = SIMILAR) -> list[tuple[int, int, float]]:
    """The pairs i < j of rows whose correlation is above `least`, and that correlation, sorted; misses none.

    Two unit vectors of correlation c lie sqrt(2 - 2c) apart, and no further in any projection. So blocks of rows are
    compared with all rows by their WAVES^2 lowest frequencies only, and in full where those are close: n * BLOCK
    numbers of memory and n^2 * WAVES^2 multiplications for n images.
    """
    rows = np.flatnonzero(thumbnails.any(axis=1))
    short = thumbnails[rows] @ _waves()
    squares = (short**2).sum(axis=1)
    furthest = 2 - 2 * least + 1e-4  # squared; room for rounding
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        apart = squares[block, None] + squares[None, start:] - 2 * (short[block] @ short[start:].T)
        left, right = np.nonzero(np.triu(apart < furthest, k=1))
        found += _verified(thumbnails, rows[left + start], rows[right + start], least)
    return sorted(found)


def _verified(
    thumbnails: Thumbnails, left: NDArray[np.int64], right: NDArray[np.int64], least: float
) -> list[tuple[int, int, float]]:
    """Those of the pairs that correlate above `least`, a block at a time."""
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(left), BLOCK):
        i, j = left[start : start + BLOCK], right[start : start + BLOCK]
        correlation = (thumbnails[i].astype(np.float64) * thumbnails[j]).sum(axis=1)
        close = correlation > least
        found += zip(i[close].tolist(), j[close].tolist(), correlation[close].tolist(), strict=True)
    return found


def _waves() -> Thumbnails:
    """The lowest two-dimensional cosines as orthonormal columns (SIDE * SIDE, WAVES^2)."""
    angle = np.pi / SIDE * (np.arange(SIDE) + 0.5)[:, None] * np.arange(WAVES)
    cosine = np.cos(angle) / np.linalg.norm(np.cos(angle), axis=0)
    return np.asarray(np.einsum("ij,kl->ikjl", cosine, cosine).reshape(SIDE**2, WAVES**2), np.float32)
