"""Find near duplicates by the correlation of small grey thumbnails.

Above ALIKE two images count as near duplicates, a threshold chosen on breast ultrasound (BUSI). Between SIMILAR and
ALIKE are repeated exposures, neighboring slices and images that only look alike.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32  # pixels of a thumbnail
ALIKE = 0.995  # correlation of two thumbnails above which the images count as near duplicates
SIMILAR = 0.98  # above which they count as similar
WAVES = 6  # per side: thumbnails are first compared by their lowest WAVES x WAVES cosines
BLOCK = 1024  # thumbnails compared with all others at a time

Thumbnails: TypeAlias = NDArray[np.float32]  # (n, SIDE * SIDE), each of mean 0 and length 1, or all 0


def thumbnail(picture: Image.Image) -> Thumbnails:
    """Return grey values (SIDE * SIDE,) of mean 0 and norm 1: the dot product of two is their correlation.

    For a constant image all values are 0: it correlates with nothing.
    """
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64).ravel()
    grey -= grey.mean()
    length = float(np.linalg.norm(grey))
    return np.asarray(grey / length if length else grey, np.float32)


def alike(thumbnails: Thumbnails, least: float = SIMILAR) -> list[tuple[int, int, float]]:
    """Return all pairs i < j of rows whose correlation is above `least`, with that correlation, sorted. Exact.

    Two unit vectors of correlation c are sqrt(2 - 2c) apart, and not further in any projection. So blocks of rows are
    first compared with all rows by their WAVES^2 lowest frequencies, and in full only if those are close. Needs
    n * BLOCK numbers of memory and n^2 * WAVES^2 multiplications for n images.
    """
    rows = np.flatnonzero(thumbnails.any(axis=1))
    short = thumbnails[rows] @ _waves()
    squares = (short**2).sum(axis=1)
    limit = 2 - 2 * least + 1e-4  # of the squared distance, with a margin for rounding
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        distance = squares[block, None] + squares[None, start:] - 2 * (short[block] @ short[start:].T)
        left, right = np.nonzero(np.triu(distance < limit, k=1))
        found += _verified(thumbnails, rows[left + start], rows[right + start], least)
    return sorted(found)


def _verified(
    thumbnails: Thumbnails, left: NDArray[np.int64], right: NDArray[np.int64], least: float
) -> list[tuple[int, int, float]]:
    """Return the pairs whose full correlation is above `least`, computed in blocks."""
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(left), BLOCK):
        i, j = left[start : start + BLOCK], right[start : start + BLOCK]
        correlation = (thumbnails[i].astype(np.float64) * thumbnails[j]).sum(axis=1)
        close = correlation > least
        found += zip(i[close].tolist(), j[close].tolist(), correlation[close].tolist(), strict=True)
    return found


def _waves() -> Thumbnails:
    """Return the lowest two-dimensional cosines as orthonormal columns (SIDE * SIDE, WAVES^2)."""
    angle = np.pi / SIDE * (np.arange(SIDE) + 0.5)[:, None] * np.arange(WAVES)
    cosine = np.cos(angle) / np.linalg.norm(np.cos(angle), axis=0)
    return np.asarray(np.einsum("ij,kl->ikjl", cosine, cosine).reshape(SIDE**2, WAVES**2), np.float32)
