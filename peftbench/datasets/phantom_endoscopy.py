"""Colonoscopy, synthetic: activity of colitis in four grades, in order, like the Mayo endoscopic subscore.

Grade by grade the net of vessels blurs and goes, the surface turns granular, and erosions grow into ulcers. Severity
is continuous within a grade, so neighbors are alike. Tint, light, folds, stool and reflections come in every grade.
"""

from __future__ import annotations

import numpy as np

from peftbench.datasets._phantom import Cohort, Field, Phantom, Pixels, X, Y, blob, grey_levels, ridges, soft, to_pixels


def draw(cohort: Cohort) -> Pixels:
    """Draw the images of a cohort."""
    severity = cohort.by_class(0, 1, 2, 3) + cohort.each(-0.25, 0.25)
    ulcers, stool = _ulcers(cohort, severity), _stool(cohort)
    hue = 0.08 * cohort.noise(6) + 0.03 * cohort.noise(1) - _vessels(cohort, severity)
    hue = (hue - 0.5 * _reddening(cohort, ulcers, severity)) * (1 - np.maximum(ulcers, stool)) + ulcers + stool
    light = _folds(cohort) + _granules(cohort, severity)
    return _colored(cohort, hue, light + 0.02 * cohort.noise(0.5))


def _vessels(cohort: Cohort, severity: Field) -> Field:
    """Draw branching vessels: clear in grade 0, blurred in 1, gone from 2."""
    course = cohort.noise(3.4)
    sharp = np.maximum(ridges(course, 0.4), 0.8 * ridges(cohort.noise(2.2), 0.25))
    seen = np.clip(1.15 - 0.6 * severity, 0, 1)
    vague = ridges(course, 0.9)
    return np.asarray(1.5 * seen * (seen * sharp + (1 - seen) * vague) * soft(cohort.noise(9), 5))


def _ulcers(cohort: Cohort, severity: Field) -> Field:
    """Draw pale spots with ragged rims: few and small from grade 2, large in 3."""
    ulcers = np.zeros((len(cohort.labels), *Y.shape))
    size = 0.035 + 0.07 * np.clip(severity - 2, 0, 1)
    for first in (1.4, 1.4, 1.4, 1.6, 1.8, 2.4):
        high = size * cohort.each(0.7, 1.5)
        spot = blob(
            cohort.each(0.15, 0.85),
            cohort.each(0.15, 0.85),
            high,
            high * cohort.each(0.6, 2),
            cohort.outline(3, 7, 0.2),
        )
        ulcers = np.maximum(ulcers, soft(spot, 0.4) * (severity > first))
    return ulcers


def _stool(cohort: Cohort) -> Field:
    """Draw remains of stool and foam: yellow like ulcers, but smooth, and in every grade."""
    stool = np.zeros((len(cohort.labels), *Y.shape))
    for probability in (0.5, 0.3):
        high = cohort.each(0.03, 0.11)
        smear = blob(cohort.each(0, 1), cohort.each(0, 1), high, high * cohort.each(0.6, 1.8))
        stool = np.maximum(stool, soft(smear, 0.9) * cohort.chance(probability))
    return stool


def _reddening(cohort: Cohort, ulcers: Field, severity: Field) -> Field:
    """Draw red halos of the ulcers and patches of redness, which grow from grade 1."""
    patches = soft(cohort.noise(4), 1.5)
    return np.asarray(np.clip(severity, 0, 2) * 0.2 * patches + 0.6 * ridges(ulcers - 0.15, 0.15))


def _granules(cohort: Cohort, severity: Field) -> Field:
    """Draw the coarse grain of an inflamed surface."""
    return np.asarray((0.02 + 0.01 * severity) * cohort.noise(1.1) + 0.02 * cohort.noise(2.5))


def _folds(cohort: Cohort) -> Field:
    """Draw the light of the endoscope on the haustral folds around a dark lumen, anywhere in the view."""
    y, x = cohort.each(-0.1, 1.1), cohort.each(-0.1, 1.1)
    far = blob(y, x, cohort.each(0.3, 0.6), cohort.each(0.3, 0.6), cohort.outline(2, 3, 0.08)) + 1
    rings = far * cohort.each(0.7, 1.5) + cohort.each(0, 1)
    fold = np.abs(rings - np.rint(rings)) * cohort.each(0.1, 0.5)
    return np.asarray(0.45 * np.minimum(far, 1.5) + fold + cohort.each(-0.3, 0.3) * X + cohort.each(-0.3, 0.3) * Y)


def _colored(cohort: Cohort, hue: Field, light: Field) -> Pixels:
    """Color from red to yellow by the rank of `hue`, light by that of `light`; add reflections and the round mask."""
    bright = grey_levels(light, cohort.shared(0.25, 0.45), cohort.shared(0.8, 1), cohort.shared(0.6, 1.2))[..., None]
    rank = grey_levels(hue, cohort.shared(-1, -0.8), cohort.shared(0.8, 1), cohort.shared(0.85, 1.1))[..., None]
    yellow = 0.2 * rank + 0.6 * rank**3  # most of the mucosa is of one hue
    tint = np.stack([cohort.shared(*span) for span in ((0.9, 1.0), (0.42, 0.62), (0.3, 0.52))], axis=-1)
    gleam = 0.8 * _reflections(cohort)[..., None]
    color = bright * tint * (1 + yellow * np.asarray([0.2, 0.9, 0.8])) * (1 - gleam) + gleam
    return to_pixels(color * _mask(cohort)[..., None])


def _reflections(cohort: Cohort) -> Field:
    """Draw white reflections of the lamp on wet mucosa, in every grade."""
    gleams = np.zeros((len(cohort.labels), *Y.shape))
    for probability in (0.9, 0.7, 0.5):
        high = cohort.each(0.01, 0.03)
        gleam = soft(blob(cohort.each(0.1, 0.9), cohort.each(0.1, 0.9), high, high * cohort.each(0.7, 3)), 0.6)
        gleams = np.maximum(gleams, gleam * cohort.chance(probability))
    return gleams


def _mask(cohort: Cohort) -> Field:
    """Draw the dark corners of the view, which depend on the patient's endoscope."""
    middle, reach = np.full((len(cohort.labels), 1, 1), 0.5), cohort.shared(0.52, 0.75)
    return soft(blob(middle, middle, reach, reach), 0.06)


plugin = Phantom("phantom_endoscopy", 6, (0.36, 0.27, 0.21, 0.16), draw, by_patient=False)
