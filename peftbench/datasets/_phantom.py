"""Shared code of the six phantoms: patients, noise fields, soft outlines, grey levels and the plug-in.

A phantom is a synthetic data set: a simplified picture of a modality, drawn by numpy from a fixed seed. The class shows
in shape, texture and arrangement only: grey levels are assigned last, by rank, from a curve drawn per patient, so no
statistic of an image's histogram depends on the class. Everything is float64, so that rounding differences between
machines do not reach the 8-bit pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from peftbench.core.catalogue import dataset_card
from peftbench.core.contract import DatasetCard, Labels, Part, Splits

SIDE = 64
PATIENTS = {"train": range(120), "val": range(120, 160), "test": range(160, 240)}
VISITS = (3, 3, 2, 4)  # images per patient, in turn: three on average
BLOCK = 20  # patients drawn at a time: their arrays fit in the CPU cache, which is twice as fast
OUTLINE = 256  # directions of an outline

Field: TypeAlias = NDArray[np.float64]  # (n, SIDE, SIDE), or (n, 1, 1) for one number per image
Flags: TypeAlias = NDArray[np.bool_]
Pixels: TypeAlias = NDArray[np.uint8]  # (n, SIDE, SIDE, 3)

Y, X = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE), indexing="ij")  # image coordinates, 0 to 1


# --- patients ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cohort:
    """The images to draw and a random generator. Every draw is (n, 1, 1): one number per image."""

    labels: Labels
    patients: Labels  # (n,) the number of each image's patient, from 0
    rng: np.random.Generator

    def each(self, low: float, high: float) -> Field:
        """Draw a number for each image."""
        return self.rng.uniform(low, high, (len(self.labels), 1, 1))

    def shared(self, low: float, high: float) -> Field:
        """Draw a number for each patient, equal in all images of the patient."""
        return self.rng.uniform(low, high, (int(self.patients.max()) + 1, 1, 1))[self.patients]

    def by_class(self, *values: float) -> Field:
        """Return the value of each image's class."""
        return np.asarray(values, dtype=np.float64)[self.labels][:, None, None]

    def chance(self, probability: float | Field) -> Flags:
        """Draw True with this probability for each image."""
        return self.each(0, 1) < probability

    def noise(self, high: float, wide: float | None = None) -> Field:
        """Draw smooth noise of mean 0 and variance 1, smoothed by `high` and `wide` pixels (standard deviations)."""
        white = self.rng.standard_normal((len(self.labels), SIDE, SIDE))
        down, across = _gaussian(high), _gaussian(wide or high)
        spread = np.sqrt((down**2).sum(1))[:, None] * np.sqrt((across**2).sum(1))
        return np.asarray(down @ white @ across.T / spread)

    def outline(self, first: int, last: int, amplitude: float | Field) -> NDArray[np.float64]:
        """Draw radii around 1 (n, OUTLINE) with waves of `first` to `last` periods and about that amplitude."""
        angle = np.linspace(0, 2 * np.pi, OUTLINE, endpoint=False)
        waves = np.arange(first, last + 1)
        phase = self.rng.uniform(0, 2 * np.pi, (len(self.labels), len(waves), 1))
        height = self.rng.uniform(0.5, 1.5, phase.shape) / np.sqrt(len(waves) / 2)
        radius = (height * np.cos(waves[:, None] * angle + phase)).sum(1)
        return np.asarray(1 + np.reshape(amplitude, (-1, 1)) * radius)

    def wave(self, periods: float, amplitude: float | Field) -> Field:
        """Draw a curve over the image width (n, 1, SIDE) per patient: two waves of up to `periods` periods."""
        slow, fast = self.shared(0.3, 0.6) * periods, self.shared(0.6, 1.0) * periods
        turn, other = self.shared(0, 2 * np.pi), self.shared(0, 2 * np.pi)
        curve = np.sin(2 * np.pi * slow * X[:1] + turn) + 0.5 * np.sin(2 * np.pi * fast * X[:1] + other)
        return np.asarray(amplitude * curve)


@lru_cache
def _gaussian(pixels: float) -> NDArray[np.float64]:
    """Return Gaussian smoothing of SIDE values as a matrix whose rows sum to 1."""
    step = np.arange(SIDE)[:, None] - np.arange(SIDE)
    weight = np.exp(-0.5 * (step / pixels) ** 2)
    return np.asarray(weight / weight.sum(1, keepdims=True))


# --- shapes --------------------------------------------------------------------------------------------------------


def soft(distance: Field, width: float | Field) -> Field:
    """Return 1 inside (distance below 0) and 0 outside, with a smooth edge of `width`."""
    inside = np.clip(0.5 - distance / width, 0, 1)
    return np.asarray(inside * inside * (3 - 2 * inside))


def blob(y: Field, x: Field, high: Field, wide: Field, outline: NDArray[np.float64] | None = None) -> Field:
    """Return the distance from the edge of an ellipse in units of its radius: -1 at the center, 0 on the edge.

    `y`, `x` is the center and `high`, `wide` the radii, all (n, 1, 1) in image widths; `outline` (n, OUTLINE) deforms
    the edge.
    """
    down, across = (Y - y) / high, (X - x) / wide
    radius = np.sqrt(down**2 + across**2)
    if outline is not None:
        turn = (np.arctan2(down, across) * (OUTLINE / (2 * np.pi))).astype(np.int64) % OUTLINE
        rim = np.take_along_axis(outline, turn.reshape(len(turn), -1), axis=1).reshape(turn.shape)
        radius = radius / rim
    return np.asarray(radius - 1)


def ridges(field: Field, width: float | Field) -> Field:
    """Return thin lines where the field crosses 0: 1 on the line, 0 from `width` on. Smooth noise gives a net."""
    return np.asarray(np.clip(1 - np.abs(field) / width, 0, 1))


# --- grey levels ---------------------------------------------------------------------------------------------------


def grey_levels(field: Field, dark: Field, bright: Field, bend: Field) -> Field:
    """Replace the values by rank with `dark` to `bright` along u**bend, so that only the curve sets the histogram."""
    flat = field.reshape(len(field), -1)
    share = (np.arange(flat.shape[1]) + 0.5) / flat.shape[1]
    curve = dark[:, 0] + (bright - dark)[:, 0] * share ** bend[:, 0]
    levels = np.empty_like(flat)
    np.put_along_axis(levels, np.argsort(flat, axis=1, kind="stable"), curve, axis=1)
    return levels.reshape(field.shape)


def to_pixels(field: Field) -> Pixels:
    """Return values of 0 to 1, (n, SIDE, SIDE) or with three channels, as 8-bit RGB."""
    color = field if field.ndim == 4 else np.repeat(field[..., None], 3, axis=-1)
    return np.asarray(np.rint(np.clip(color, 0, 1) * 255).astype(np.uint8))


def lettering(cohort: Cohort, probability: float) -> Field:
    """Draw burnt-in text like that of scanners: 1 on the text, whose corner and content are fixed per patient."""
    n = len(cohort.labels)
    text = np.zeros((n, SIDE, SIDE))
    glyphs = cohort.rng.random((int(cohort.patients.max()) + 1, 5, 15)) < 0.6
    glyphs[:, :, 3::4] = False
    text[:, 3:8, 3:18] = glyphs[cohort.patients]
    low, right = cohort.shared(0, 1) < 0.5, cohort.shared(0, 1) < 0.5
    text = np.where(low, np.roll(text, SIDE - 11, axis=1), text)
    text = np.where(right, np.roll(text, SIDE - 21, axis=2), text)
    return text * (cohort.shared(0, 1) < probability)


# --- the plug-in ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phantom:
    """A synthetic data set: `draw` makes the images of a cohort; `shares` are the class frequencies."""

    name: str
    seed: int
    shares: tuple[float, ...]
    draw: Callable[[Cohort], Pixels]
    by_patient: bool = True  # whether all images of a patient have the same class

    @property
    def card(self) -> DatasetCard:
        """Its entry in the catalogue."""
        return dataset_card(self.name)

    def load(self, root: Path, seed: int) -> Splits:  # noqa: ARG002 -- required by the contract; nothing is read or split
        """Return the same images and parts for every `root` and `seed`; no patient is in two parts."""
        return draw_splits(self)


@lru_cache(maxsize=6)
def draw_splits(phantom: Phantom) -> Splits:
    """Return the images of all parts; the last six phantoms are kept in memory."""
    rng = np.random.Generator(np.random.PCG64(phantom.seed))
    train, val, test = (_part(phantom, part, patients, rng) for part, patients in PATIENTS.items())
    return Splits(train, val, test, "official (drawn)")


def _part(phantom: Phantom, part: str, patients: range, rng: np.random.Generator) -> Part:
    """Return one part's images, patient by patient, named like `phantom_oct/train/p012_2`: patient and visit."""
    labels, of = _enrol(phantom, len(patients), rng)
    blocks = np.split(np.arange(len(of)), np.searchsorted(of, range(BLOCK, len(patients), BLOCK)))
    images = np.concatenate([phantom.draw(Cohort(labels[b], of[b] - of[b[0]], rng)) for b in blocks])
    groups = tuple(f"p{patients[p]:03d}" for p in of)
    visits = np.arange(len(of)) - np.searchsorted(of, of) + 1
    names = tuple(f"{phantom.name}/{part}/{group}_{visit}" for group, visit in zip(groups, visits, strict=True))
    return Part(images, labels, names, groups)


def _enrol(phantom: Phantom, patients: int, rng: np.random.Generator) -> tuple[Labels, Labels]:
    """Return the label and patient (from 0) of each image, patient by patient, with class frequencies `shares`."""
    of = np.repeat(np.arange(patients), rng.permutation(np.resize(VISITS, patients)))
    units = patients if phantom.by_patient else len(of)
    bounds = np.rint(np.cumsum(phantom.shares) * units)
    labels = rng.permutation(np.searchsorted(bounds, np.arange(units), side="right")).astype(np.int64)
    return (labels[of] if phantom.by_patient else labels), of
