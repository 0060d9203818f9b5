"""Breast ultrasound, synthetic: no lesion, a benign one or a malignant one, under speckle.

Benign is smooth and wider than tall, malignant is spiculated, taller and casts a shadow; each of these signs fails now
and then, as in the clinic. Fat lobules look like lesions; shadows, calipers and writing come in every class.
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


def draw(cohort: Cohort) -> Pixels:
    """Draw the images of a cohort."""
    echo = _layers(cohort) * (1 - 0.6 * _lobules(cohort))
    echo = _lesion(cohort, echo) * (1 - _stray_shadow(cohort))
    speckled = np.maximum(echo, 0.02) * _speckle(cohort)
    grey = grey_levels(
        speckled, cohort.shared(0, 0.08), cohort.shared(0.55, 1), cohort.shared(1.2, 3) * cohort.each(0.85, 1.15)
    )
    return to_pixels(np.maximum(np.maximum(grey, lettering(cohort, 0.4) * 0.8), _calipers(cohort) * 0.9))


def _layers(cohort: Cohort) -> Field:
    """Draw skin, fat, gland and muscle from top to bottom, with the attenuation of depth and uneven gain."""
    fat, muscle = cohort.shared(0.12, 0.3), cohort.shared(0.72, 0.95)
    bend = cohort.wave(1.5, cohort.shared(0.01, 0.05))
    skin = soft(np.abs(Y - 0.03) - 0.02, 0.04)
    gland = soft(fat + bend - Y, 0.08) * soft(Y - muscle + bend, 0.06)
    fibers = 0.25 * cohort.noise(1.2, 7) + 0.2 * cohort.noise(4, 8)
    gain = 1 + cohort.each(-0.5, 0.4) * Y + cohort.each(-0.3, 0.3) * X
    return np.asarray((0.4 + 0.5 * skin + 0.35 * gland * cohort.shared(0.6, 1.4) + 0.2 * fibers) * gain)


def _lobules(cohort: Cohort) -> Field:
    """Draw up to three dark lobules of fat with blurred rims, at any place, in any class."""
    lobules = np.zeros((len(cohort.labels), *Y.shape))
    for probability in (0.8, 0.6, 0.4):
        high = cohort.each(0.05, 0.13)
        bent = cohort.outline(2, 4, 0.15)
        lobe = blob(cohort.each(0.15, 0.95), cohort.each(0, 1), high, high * cohort.each(0.9, 2.2), bent)
        lobules = np.maximum(lobules, soft(lobe, 0.9) * cohort.chance(probability) * cohort.each(0.4, 1))
    return lobules


def _lesion(cohort: Cohort, echo: Field) -> Field:
    """Return the echo with the lesion, its edge and the shadow below it; unchanged in the class without a lesion."""
    y, x, high, wide = _place(cohort)
    amplitude = cohort.by_class(0, 0.05, 0.2) * cohort.each(0.7, 1.3)
    spikes = cohort.labels[:, None] == 2
    bent = np.where(spikes, cohort.outline(5, 11, amplitude), cohort.outline(2, 4, amplitude))
    rim = blob(y, x, high, wide, bent)
    there = cohort.by_class(0, 1, 1)
    inside = soft(rim, 0.3) * there
    behind = soft(np.abs(X - x) / wide - 0.85, 0.5) * soft(y - Y, 0.08) * (1 - inside) * there
    shadow = cohort.chance(cohort.by_class(0, 0.15, 0.7)) * cohort.each(0.3, 0.7)
    lit = cohort.chance(cohort.by_class(0, 0.4, 0.1)) * cohort.each(0.2, 0.5)
    within = cohort.each(0.15, 0.45) + 0.08 * cohort.noise(1.5)
    return np.asarray((echo * (1 - inside) + inside * within * 0.6) * (1 + behind * (lit - shadow)))


def _place(cohort: Cohort) -> tuple[Field, Field, Field, Field]:
    """Return center and radii of the lesion: equal areas in both classes, overlapping aspect ratios."""
    size = cohort.shared(0.14, 0.24) * cohort.each(0.9, 1.1)
    aspect = np.sqrt(cohort.by_class(1.3, 1.45, 0.95) * cohort.shared(0.8, 1.25))
    return cohort.each(0.3, 0.68), cohort.each(0.22, 0.78), size / aspect, size * aspect


def _stray_shadow(cohort: Cohort) -> Field:
    """Draw the shadow of a rib or of poor contact, in any class."""
    wide = cohort.each(0.04, 0.15)
    column = soft(np.abs(X - cohort.each(0, 1) - cohort.each(-0.3, 0.3) * Y) - wide, 0.08)
    return np.asarray(column * soft(cohort.each(-0.2, 0.7) - Y, 0.1) * cohort.chance(0.5) * cohort.each(0.3, 0.7))


def _speckle(cohort: Cohort) -> Field:
    """Draw Rayleigh speckle whose grain is drawn per patient."""
    grain = cohort.shared(0, 1)
    real, imaginary = (grain * cohort.noise(0.6, 1.2) + (1 - grain) * cohort.noise(0.45, 0.6) for _ in range(2))
    return np.asarray((real**2 + imaginary**2 + 0.05) ** cohort.shared(0.12, 0.3))


def _calipers(cohort: Cohort) -> Field:
    """Draw two crosses anywhere, in any class."""
    marks = np.zeros((len(cohort.labels), *Y.shape))
    for _ in range(2):
        down, across = (np.abs(g - np.rint(cohort.each(0.1, 0.9) * 63) / 63) * 63 for g in (Y, X))
        cross = (np.maximum(down, across) < 2.5) & (np.minimum(down, across) < 0.5)
        marks = np.maximum(marks, cross)
    return np.asarray(marks * cohort.chance(0.3))


plugin = Phantom("phantom_ultrasound", 2, (0.2, 0.5, 0.3), draw)
