"""Simulated runs of methods that are equally good, or apart by a known shift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from peftbench.statistics.bootstrap import Predictions

CLASSES = 3
OF_CLASS = (0.5, 0.3, 0.2)


def tie(
    draw: np.random.Generator,
    groups: int,
    seeds: int,
    *,
    methods: int = 2,
    shift: float = 0.0,
    seed_noise: float = 0.1,
) -> list[list[Predictions]]:
    """Draw methods' runs on the same patients of 1 to 4 images, each method `shift` better than the one before.

    An image is classified correctly where the sum of the method's level, the image's and patient's difficulty, what
    each method makes of it, the seed's level and the seed's noise on the image is positive.
    """
    group = np.repeat(np.arange(groups), draw.integers(1, 5, groups))
    images = len(group)
    labels = draw.choice(CLASSES, groups, p=OF_CLASS)[group]
    labels[:CLASSES] = np.arange(CLASSES)
    shared = _normal(draw, 0.7, group) + draw.normal(0, 0.7, images) + 0.9
    made: list[list[Predictions]] = [[] for _ in range(methods)]
    for method, runs in enumerate(made):
        level = shared + _normal(draw, 0.5, group) + draw.normal(0, 0.5, images) + method * shift
        for _ in range(seeds):
            noise = draw.normal(0, seed_noise if seeds > 1 else 0.0) + draw.normal(0, 0.5, images)
            wrong = (labels + draw.integers(1, CLASSES, images)) % CLASSES
            logits = draw.normal(0, 0.5, (images, CLASSES))
            logits[np.arange(images), np.where(level + noise > 0, labels, wrong)] += 2
            runs.append((logits.astype(np.float32), labels, group.tolist()))
    return made


def _normal(draw: np.random.Generator, spread: float, group: NDArray[np.int64]) -> NDArray[np.float64]:
    """One value a group, for each of its images."""
    return np.asarray(draw.normal(0, spread, group.max() + 1)[group])
