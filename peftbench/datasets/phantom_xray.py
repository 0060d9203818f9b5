"""Chest X-rays, synthetic: normal, one lobe opaque, or a net of lines in both lungs.

A lobar opacity is one patch in one lung; interstitial disease is fine and everywhere. Ribs, heart, exposure, tubes,
shoulder blades and the markings of healthy vessels vary in every class.
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
    middle = cohort.each(0.42, 0.52), cohort.each(0.44, 0.56)
    lungs = _lungs(cohort, *middle)
    shade = 0.75 - 0.5 * lungs + 0.04 * cohort.noise(5)
    shade = shade + _mediastinum(cohort, *middle) + _ribs(cohort, *middle) + _overlay(cohort)
    shade = shade + lungs * (_vessels(cohort, middle[1]) + _lobar(cohort, *middle) + _interstitial(cohort))
    shade = shade + cohort.each(-0.25, 0.25) * (X - 0.5) + cohort.each(-0.2, 0.2) * (Y - 0.5)
    shade = shade + cohort.shared(0.01, 0.035) * cohort.noise(0.5)
    grey = grey_levels(
        shade, cohort.shared(0, 0.15), cohort.shared(0.75, 1), cohort.shared(0.6, 1.4) * cohort.each(0.9, 1.1)
    )
    return to_pixels(np.maximum(grey, 0.9 * lettering(cohort, 0.5)))


def _lungs(cohort: Cohort, y: Field, x: Field) -> Field:
    """Draw two lungs, each narrower at the top, ending at a diaphragm."""
    high, wide, apart = cohort.shared(0.34, 0.42), cohort.shared(0.17, 0.22), cohort.shared(0.2, 0.25)
    lungs = np.zeros((len(cohort.labels), *Y.shape))
    for side in (-1, 1):
        lean = x + side * (apart + 0.12 * (Y - y))
        lung = soft(blob(y, lean, high, wide, cohort.outline(2, 4, 0.04)), 0.2)
        floor = y + cohort.shared(0.22, 0.32) + 1.2 * (X - x - side * apart) ** 2
        lungs = np.maximum(lungs, lung * soft(Y - floor, 0.04))
    return lungs


def _mediastinum(cohort: Cohort, y: Field, x: Field) -> Field:
    """Draw spine and vessels in the middle, and the heart beside and below them."""
    column = soft(np.abs(X - x) - cohort.shared(0.05, 0.08), 0.08)
    size = cohort.shared(0.12, 0.19)
    heart = soft(blob(y + 0.16, x + 0.07, size, size * cohort.shared(0.9, 1.2)), 0.25)
    return np.asarray(0.25 * np.maximum(column, heart))


def _ribs(cohort: Cohort, y: Field, x: Field) -> Field:
    """Draw bright arcs that fall outwards, and the collar bones."""
    fall = cohort.shared(0.6, 1.6) * (X - x) ** 2
    phase = (Y - fall) * cohort.shared(7, 10) + cohort.each(0, 1)
    arcs = ridges(phase - np.rint(phase), 0.22) * soft(np.abs(X - x) - 0.42, 0.05)
    collar = ridges(Y - y + 0.3 - 0.25 * np.abs(X - x) + 0.03, 0.025) * soft(0.08 - np.abs(X - x), 0.05)
    return np.asarray(cohort.shared(0.06, 0.14) * arcs + 0.15 * collar)


def _overlay(cohort: Cohort) -> Field:
    """Draw objects over the chest, in any class: shoulder blades, skin folds, tubes and leads."""
    over = np.zeros((len(cohort.labels), *Y.shape))
    for side in (0, 1):
        edge = cohort.each(0.02, 0.16)
        blade = soft(np.abs(X - side) - edge - 0.1 * Y, 0.05) * soft(Y - cohort.each(0.3, 0.7), 0.2)
        over = over + 0.12 * blade * cohort.chance(0.6)
    for probability in (0.5, 0.3):
        tube = X - cohort.each(0.1, 0.9) - cohort.each(-0.4, 0.4) * Y - cohort.wave(1, 0.05)
        over = over + 0.25 * ridges(tube, 0.018) * soft(Y - cohort.each(0.3, 1.1), 0.02) * cohort.chance(probability)
    return np.asarray(over)


def _vessels(cohort: Cohort, x: Field) -> Field:
    """Draw the markings of healthy vessels, stronger near the middle."""
    near = soft(np.abs(X - x) - 0.2, 0.3)
    return np.asarray(near * ridges(cohort.noise(2.5), 0.25) * cohort.shared(0.03, 0.2))


def _lobar(cohort: Cohort, y: Field, x: Field) -> Field:
    """Draw one opaque patch in one lung, cut straight by a fissure; none in other classes."""
    side = np.where(cohort.chance(0.5), 1.0, -1.0)
    top, out = y + cohort.each(-0.2, 0.18), x + side * cohort.each(0.17, 0.3)
    high = cohort.each(0.08, 0.16)
    patch = soft(blob(top, out, high, high * cohort.each(0.8, 1.3), cohort.outline(2, 4, 0.12)), 0.5)
    fissure = soft(
        (top - Y) * np.where(cohort.chance(0.5), 1.0, -1.0) - 0.4 * high - cohort.each(-0.3, 0.3) * (X - out), 0.04
    )
    return np.asarray(
        cohort.by_class(0, 1, 0) * patch * fissure * cohort.each(0.25, 0.45) * (1 + 0.15 * cohort.noise(1))
    )


def _interstitial(cohort: Cohort) -> Field:
    """Draw a net of thin lines and small nodes through both lungs; none in other classes."""
    net = np.maximum(ridges(cohort.noise(1.3), 0.35), ridges(cohort.noise(1.8), 0.25))
    patchy = 0.5 + soft(cohort.noise(7), 2)
    return np.asarray(cohort.by_class(0, 0, 1) * net * patchy * cohort.each(0.12, 0.26))


plugin = Phantom("phantom_xray", 4, (0.3, 0.42, 0.28), draw)
