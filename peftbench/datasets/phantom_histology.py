"""Histology of glands, synthetic: normal, low grade or high grade, in haematoxylin and eosin.

Normal glands have one row of even nuclei round an open lumen; low grade has crowded, elongated nuclei in several rows;
high grade has lost the row: uneven nuclei fill the gland and the lumen closes. Size, number and stain of the nuclei,
stroma and lymphocytes vary from patient to patient in every class.
"""

from __future__ import annotations

import numpy as np

from peftbench.datasets._phantom import (
    OUTLINE,
    SIDE,
    Cohort,
    Field,
    Phantom,
    Pixels,
    blob,
    grey_levels,
    soft,
    to_pixels,
)

ROW = 24  # nuclei of a gland, at most
STROMA = 16  # nuclei between the glands, at most
REACH = 4  # pixels that a nucleus may reach from its middle


def draw(cohort: Cohort) -> Pixels:
    """Draw the images of a cohort."""
    n = len(cohort.labels)
    size = cohort.shared(1.4, 2.1)
    lying = cohort.shared(0, 1)
    tissue = 0.42 + 0.06 * (lying * cohort.noise(1, 3) + (1 - lying) * cohort.noise(3, 1) + cohort.noise(3))
    nuclei = np.zeros((n, SIDE + 2 * REACH, SIDE + 2 * REACH))
    _scatter(cohort, nuclei, size)
    for y, x in zip((0.25, 0.75), cohort.rng.permuted(np.tile([0.25, 0.75], (n, 1)), axis=1).T, strict=True):
        middle = cohort.each(-0.1, 0.1) + y, cohort.each(-0.1, 0.1) + x[:, None, None]
        tissue = _gland(cohort, middle, tissue, nuclei, size)
    tissue = tissue * (1 - 0.9 * _clefts(cohort))
    stain = tissue + 0.6 * nuclei[:, REACH:-REACH, REACH:-REACH] * (0.85 + 0.15 * cohort.noise(0.8))
    return _colored(cohort, stain + 0.03 * cohort.noise(0.5))


def _gland(cohort: Cohort, middle: tuple[Field, Field], tissue: Field, nuclei: Field, size: Field) -> Field:
    """Draw one gland's nuclei into `nuclei`; return the tissue with its cytoplasm and lumen."""
    radius = cohort.each(0.19, 0.29)
    bent = cohort.outline(2, 4, cohort.by_class(0.1, 0.1, 0.12))
    distance = blob(*middle, radius, radius, bent)
    open_to = cohort.by_class(0.55, 0.5, 0.4) * cohort.each(0.6, 1.3)
    lumen = soft(distance + 1 - open_to, 0.15)
    body = soft(distance - 0.2, 0.2)
    _epithelium(cohort, nuclei, middle, radius * SIDE, bent, size)
    return np.asarray((tissue * (1 - body) + 0.36 * body) * (1 - 0.95 * lumen))


def _epithelium(
    cohort: Cohort, nuclei: Field, middle: tuple[Field, Field], radius: Field, bent: Field, size: Field
) -> None:
    """Draw nuclei along the rim of a gland into `nuclei`: in one row, in several, or in none."""
    count = cohort.shared(15, ROW)
    y, x = (m[:, 0, 0] * (SIDE - 1) for m in middle)
    uneven = cohort.by_class(0.1, 0.1, 0.45)
    for k in range(ROW):
        angle = (k + cohort.each(-0.3, 0.3)) / count
        rim = bent[np.arange(len(bent)), (angle[:, 0, 0] * OUTLINE).astype(np.int64) % OUTLINE]
        row = 1 - cohort.by_class(0.08, 0.38, 0.7) * cohort.each(0, 1)
        away = (radius * row)[:, 0, 0] * rim
        turn = 2 * np.pi * angle + cohort.by_class(0.3, 0.3, 3.2) * cohort.each(-1, 1)
        swell = size * (1 + uneven * cohort.each(-1, 1))
        stretch = np.sqrt(cohort.by_class(1.2, 1.8, 1.3) * cohort.each(0.85, 1.15))
        at = y + away * np.sin(2 * np.pi * angle[:, 0, 0]), x + away * np.cos(2 * np.pi * angle[:, 0, 0])
        _stamp(nuclei, *at, swell * stretch, swell / stretch, turn, (angle < 1) * cohort.each(0.7, 1))


def _scatter(cohort: Cohort, nuclei: Field, size: Field) -> None:
    """Draw spindle cells and lymphocytes of the stroma into `nuclei`, as many as the patient has."""
    busy, round_ = cohort.shared(0.2, 1), cohort.shared(0, 1)
    for _ in range(STROMA):
        y, x = ((cohort.each(0, SIDE - 1))[:, 0, 0] for _ in range(2))
        stretch = np.where(cohort.chance(round_), 1.0, 1.6)
        _stamp(
            nuclei,
            y,
            x,
            size * stretch,
            size / stretch,
            cohort.each(0, np.pi),
            cohort.chance(busy) * cohort.each(0.7, 1),
        )


def _stamp(nuclei: Field, y: Field, x: Field, long: Field, short: Field, turn: Field, dark: Field) -> None:
    """Draw one ellipse per image at `y`, `x` (n,) pixels with half axes `long` and `short`; the darker value wins."""
    y, x = np.clip(y, 0, SIDE - 1), np.clip(x, 0, SIDE - 1)
    top, left = np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)
    step = np.arange(-REACH, REACH + 1)
    down, across = (top - y)[:, None, None] + step[:, None], (left - x)[:, None, None] + step
    along, aside = across * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - across * np.sin(turn)
    ellipse = soft(np.sqrt((along / long) ** 2 + (aside / short) ** 2) - 1, 0.8) * dark
    window = (
        np.arange(len(y))[:, None, None],
        (top + REACH)[:, None, None] + step[:, None],
        (left + REACH)[:, None, None] + step,
    )
    nuclei[window] = np.maximum(nuclei[window], ellipse)


def _clefts(cohort: Cohort) -> Field:
    """Draw empty vessels and tears: white without a row of nuclei, in any class."""
    clefts = np.zeros((len(cohort.labels), SIDE, SIDE))
    for probability in (0.7, 0.4):
        high = cohort.each(0.03, 0.09)
        shape = blob(cohort.each(0, 1), cohort.each(0, 1), high, high * cohort.each(0.5, 2), cohort.outline(2, 4, 0.12))
        clefts = np.maximum(clefts, soft(shape, 0.3) * cohort.chance(probability))
    return clefts


def _colored(cohort: Cohort, stain: Field) -> Pixels:
    """Color the lower half of the stain by eosin, the upper by haematoxylin, in the patient's shades."""
    depth = grey_levels(stain, cohort.shared(0.0, 0.08), cohort.shared(0.85, 1.2), cohort.shared(0.8, 1.5))
    eosin = [cohort.shared(low, high) for low, high in ((0.02, 0.2), (0.6, 1.2), (0.25, 0.7))]
    blue = [cohort.shared(low, high) for low, high in ((1.1, 2.2), (1.2, 2.2), (0.4, 1.0))]
    absorbed = [np.minimum(depth, 0.5) * e + np.maximum(depth - 0.5, 0) * b for e, b in zip(eosin, blue, strict=True)]
    return to_pixels(cohort.shared(0.85, 1)[..., None] * np.exp(-1.2 * np.stack(absorbed, axis=-1)))


plugin = Phantom("phantom_histology", 1, (0.4, 0.3, 0.3), draw, by_patient=False)
