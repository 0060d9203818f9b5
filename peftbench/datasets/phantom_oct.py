"""Optical coherence tomography of the retina, synthetic: normal, drusen, oedema or a neovascular membrane.

Drusen are small humps of the lowest bright layer, oedema is dark cysts between the layers, a membrane is one wide dome
with fluid over it. Position, tilt, curvature, thickness, the pit, shadows of vessels and speckle come in every class.
"""

from __future__ import annotations

import numpy as np

from peftbench.datasets._phantom import (
    Cohort,
    Field,
    Phantom,
    Pixels,
    X,
    Y,
    blob,
    grey_levels,
    lettering,
    soft,
    to_pixels,
)

# Reflectivity at depths from the inner limiting membrane (0) to the pigment epithelium (1).
DEPTH = (-0.06, 0.0, 0.06, 0.16, 0.24, 0.34, 0.44, 0.5, 0.58, 0.66, 0.78, 0.82, 0.86, 0.9, 0.94, 1.04, 1.1)
BRIGHT = (0.0, 0.7, 0.8, 0.65, 0.5, 0.5, 0.25, 0.25, 0.5, 0.22, 0.2, 0.6, 0.6, 0.3, 0.9, 0.95, 0.4)


def draw(cohort: Cohort) -> Pixels:
    """Draw the images of a cohort."""
    top, base = _surfaces(cohort)
    dome, fluid = _dome(cohort)
    raised = base - dome - _drusen(cohort)
    depth = (Y - top) / np.maximum(raised - top, 0.03)
    light = np.where(raised > Y, np.interp(depth, DEPTH, BRIGHT), _below(cohort, raised, base))
    light = light * (1 - 0.9 * soft(np.abs(Y - raised + 0.05 + fluid / 2) - fluid / 2, 0.03) * (fluid > 0.01))
    light = light * (1 - 0.9 * _cysts(cohort, top, raised)) * (1 - _vessels(cohort, top))
    light = (light + 0.5 * _exudates(cohort, top, raised)) * (0.85 + 0.15 * cohort.noise(1, 3)) + 0.05
    grain = 1 + cohort.shared(0.1, 0.22) * cohort.noise(0.4, 0.7)
    speckled = light * grain + cohort.shared(0.02, 0.05) * cohort.noise(0.4)
    grey = grey_levels(
        speckled, cohort.shared(0, 0.1), cohort.shared(0.65, 1), cohort.shared(1.6, 3) * cohort.each(0.9, 1.1)
    )
    return to_pixels(np.maximum(grey, 0.8 * lettering(cohort, 0.3)))


def _surfaces(cohort: Cohort) -> tuple[Field, Field]:
    """Return the heights of inner limiting membrane and pigment epithelium over the width (n, 1, SIDE)."""
    across = X[:1] - 0.5
    course = (
        cohort.each(-0.25, 0.25) * across
        + cohort.shared(-0.5, 0.5) * across**2
        + cohort.wave(1.5, cohort.shared(0, 0.015))
    )
    base = cohort.each(0.6, 0.8) + course
    off = (across - cohort.each(-0.35, 0.35)) / cohort.shared(0.08, 0.16)
    pit = cohort.chance(0.6) * cohort.shared(0.03, 0.12) / (1 + off**2) ** 2
    thick = cohort.shared(0.3, 0.44) + cohort.by_class(0, 0, 0.02, 0.04) + cohort.wave(1, 0.01)
    return base - thick + pit, base


def _drusen(cohort: Cohort) -> Field:
    """Return the height of the humps over the width (n, 1, SIDE); 0 in other classes."""
    humps = np.zeros((len(cohort.labels), 1, X.shape[1]))
    for probability in (1.0, 1.0, 0.8, 0.5, 0.3):
        off = (X[:1] - cohort.each(0.08, 0.92)) / cohort.each(0.04, 0.08)
        hump = np.clip(1 - off**2, 0, 1) * cohort.each(0.06, 0.11) * cohort.chance(probability)
        humps = np.maximum(humps, hump)
    return humps * cohort.by_class(0, 1, 0, 0)


def _dome(cohort: Cohort) -> tuple[Field, Field]:
    """Return the height of the membrane's dome and the thickness of the fluid over it (n, 1, SIDE), else 0."""
    there = cohort.by_class(0, 0, 0, 1)
    middle, wide = cohort.each(0.2, 0.8), cohort.each(0.16, 0.3)
    off = (X[:1] - middle) / wide
    dome = np.clip(1 - off**2, 0, 1) * cohort.each(0.12, 0.2) * there
    beside = (X[:1] - middle - wide * cohort.each(-1, 1)) / (wide * cohort.each(0.6, 1.1))
    return dome, np.clip(1 - beside**2, 0, 1) * cohort.each(0.03, 0.11) * there


def _below(cohort: Cohort, raised: Field, base: Field) -> Field:
    """Draw the pigment epithelium at `raised`, grey matter down to `base`, then the fading choroid with vessels."""
    line = soft(Y - raised - 0.025, 0.03)
    filled = soft(Y - base, 0.02) * soft(raised - Y, 0.02)
    mottle = 0.35 + 0.22 * cohort.noise(1.5, 2.5)
    choroid = np.maximum(mottle, 0.05) * soft(Y - base - cohort.shared(0.1, 0.25), 0.25) * cohort.shared(0.6, 1.4)
    return np.asarray(np.maximum(0.95 * line, np.maximum(0.4 * filled, choroid)))


def _cysts(cohort: Cohort, top: Field, base: Field) -> Field:
    """Draw dark ovals between the layers; none in other classes."""
    cysts = np.zeros((len(cohort.labels), *Y.shape))
    column = np.arange(len(cohort.labels))
    for probability in (1.0, 1.0, 0.7, 0.5, 0.3):
        x, share = cohort.each(0.1, 0.9), cohort.each(0.3, 0.75)
        at = np.rint(x[:, 0, 0] * (X.shape[1] - 1)).astype(np.int64)
        y = top[column, 0, at][:, None, None] * (1 - share) + base[column, 0, at][:, None, None] * share
        high = cohort.each(0.04, 0.085)
        oval = soft(blob(y, x, high, high * cohort.each(0.8, 1.7)), 0.4)
        cysts = np.maximum(cysts, oval * cohort.chance(probability))
    return cysts * cohort.by_class(0, 0, 1, 0) * soft(top + 0.03 - Y, 0.03) * soft(Y - base + 0.03, 0.03)


def _vessels(cohort: Cohort, top: Field) -> Field:
    """Draw the shadows below vessels of the inner layer."""
    shadows = np.zeros((len(cohort.labels), *Y.shape))
    for probability in (0.8, 0.6, 0.4):
        wide = cohort.each(0.008, 0.04)
        column = soft(np.abs(X - cohort.each(0, 1)) - wide, 0.03)
        shadows = np.maximum(shadows, column * cohort.each(0.2, 0.7) * cohort.chance(probability))
    return shadows * soft(top + 0.08 - Y, 0.06)


def _exudates(cohort: Cohort, top: Field, base: Field) -> Field:
    """Draw small bright dots in the retina, in any class."""
    dots = np.zeros((len(cohort.labels), *Y.shape))
    for probability in (0.5, 0.4, 0.3):
        size = cohort.each(0.012, 0.025)
        dot = soft(blob(cohort.each(0.2, 0.8), cohort.each(0, 1), size, size), 0.8)
        dots = np.maximum(dots, dot * cohort.chance(probability))
    return dots * (top + 0.03 < Y) * (base - 0.06 > Y)


plugin = Phantom("phantom_oct", 5, (0.4, 0.18, 0.22, 0.2), draw)
