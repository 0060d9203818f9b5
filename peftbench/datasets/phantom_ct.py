"""Computed tomography of the chest, synthetic: clear lungs, ground glass or consolidation.

Ground glass is a haze with soft rims through which the vessels are seen; consolidation hides them, ends sharply and
lies on the pleura. Window, position, heart, nodules and the density that gravity adds vary in every class.
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
    ridges,
    soft,
    to_pixels,
)


def draw(cohort: Cohort) -> Pixels:
    """Draw the images of a cohort."""
    middle = cohort.each(0.44, 0.56), cohort.each(0.45, 0.55)
    high, wide = cohort.shared(0.3, 0.38), cohort.shared(0.4, 0.48)
    body = soft(blob(*middle, high, wide, cohort.outline(2, 3, 0.02)), 0.06)
    lungs = _lungs(cohort, middle, high, wide)
    air = _air(cohort, middle, high)
    density = body * (0.62 + 0.05 * cohort.noise(2)) * (1 - lungs) + lungs * air
    density = np.maximum(density, 0.95 * _bones(cohort, middle, high, wide))
    density = density + cohort.shared(0.01, 0.04) * cohort.noise(0.5)
    curve = cohort.shared(1.8, 3.2) * cohort.each(0.9, 1.1)
    grey = grey_levels(density, cohort.shared(0, 0.12), cohort.shared(0.7, 1), curve)
    return to_pixels(np.maximum(grey, 0.8 * lettering(cohort, 0.4)))


def _lungs(cohort: Cohort, middle: tuple[Field, Field], high: Field, wide: Field) -> Field:
    """Draw both lungs, with the heart cut out of them."""
    y, x = middle
    apart = cohort.shared(0.46, 0.52)
    sides = [
        blob(
            y,
            x + side * apart * wide,
            high * cohort.shared(0.68, 0.84),
            wide * cohort.shared(0.36, 0.43),
            cohort.outline(2, 4, 0.05),
        )
        for side in (-1, 1)
    ]
    heart = blob(y - 0.3 * high, x + 0.15 * wide, high * cohort.shared(0.3, 0.5), wide * cohort.shared(0.2, 0.42))
    return np.asarray(soft(np.minimum(*sides), 0.12) * (1 - soft(heart, 0.15)))


def _air(cohort: Cohort, middle: tuple[Field, Field], high: Field) -> Field:
    """Draw the density within the lungs: vessels, nodules, gravity-dependent density and the disease."""
    vessels = 0.6 * ridges(cohort.noise(2.2), 0.2) * soft(cohort.noise(4), 1.5) * cohort.shared(0.6, 1)
    behind = np.clip((Y - middle[0]) / high, 0, 1) ** 2 * cohort.each(0, 0.25)
    lung = np.maximum(0.1 + 0.03 * cohort.noise(1.5) + behind, vessels)
    for probability in (0.5, 0.3):
        size = cohort.each(0.015, 0.035)
        nodule = soft(blob(cohort.each(0.25, 0.75), cohort.each(0.1, 0.9), size, size), 0.5)
        lung = np.maximum(lung, 0.6 * nodule * cohort.chance(probability))
    return _diseased(cohort, lung, middle)


def _diseased(cohort: Cohort, lung: Field, middle: tuple[Field, Field]) -> Field:
    """Draw patches near the pleura: a haze over the lung, or dense tissue with air bronchograms in its place."""
    bronchi = ridges(cohort.noise(1.8), 0.12)
    mottle = 1 + 0.25 * cohort.noise(1)
    for probability in (1.0, 1.0, 0.6):
        y, x = _at_pleura(cohort, middle)
        size = cohort.each(0.07, 0.13)
        patch = blob(y, x, size, size * cohort.each(0.7, 1.4), cohort.outline(2, 6, 0.12))
        there = cohort.chance(probability)
        haze = soft(patch, 0.9) * there * cohort.by_class(0, 1, 0)
        dense = soft(patch, 0.2) * there * cohort.by_class(0, 0, 1)
        lung = lung + haze * mottle * cohort.each(0.24, 0.4) * (1 - lung)
        lung = lung * (1 - dense) + dense * (0.6 - 0.35 * bronchi)
    return lung


def _at_pleura(cohort: Cohort, middle: tuple[Field, Field]) -> tuple[Field, Field]:
    """Return a place (y, x) in the outer half of either lung."""
    side = np.where(cohort.chance(0.5), 1.0, -1.0)
    return middle[0] + cohort.each(-0.18, 0.2), middle[1] + side * cohort.each(0.15, 0.29)


def _bones(cohort: Cohort, middle: tuple[Field, Field], high: Field, wide: Field) -> Field:
    """Draw the spine, the ribs and the table below."""
    y, x = middle
    size = cohort.shared(0.045, 0.07)
    spine = soft(blob(y + 0.72 * high, x, size, size * 1.2), 0.4)
    ring = np.abs(blob(y, x, 0.9 * high, 0.91 * wide))
    turn = np.arctan2(Y - y, X - x) * cohort.shared(5, 8) + cohort.shared(0, 6)
    ribs = soft(ring - 0.03, 0.06) * (np.sin(turn) > 0)
    table = soft(np.abs(Y - y - high - 0.04 - 0.2 * (X - x) ** 2) - 0.006, 0.02) * cohort.shared(0.3, 0.8)
    return np.asarray(np.maximum(np.maximum(spine, ribs), table))


plugin = Phantom("phantom_ct", 3, (0.45, 0.3, 0.25), draw)
