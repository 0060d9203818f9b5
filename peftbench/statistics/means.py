"""Intervals of means of independent values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mean:
    """A mean with its 95% interval; nan limits for fewer than two values."""

    value: float
    low: float
    high: float
    count: int


def mean(values: Sequence[float]) -> Mean:
    """Return the mean with the interval of Student's t distribution; values that are all equal have no width."""
    from scipy.stats import ttest_1samp  # noqa: PLC0415 - half a second that most verbs do not wait for

    value = float(np.mean(values)) if values else math.nan
    if len(values) < 2:  # noqa: PLR2004 - one value has no variance
        return Mean(value, math.nan, math.nan, len(values))
    if np.ptp(values) == 0:
        return Mean(value, value, value, len(values))
    found = ttest_1samp(values, 0).confidence_interval(0.95)
    return Mean(value, float(found.low), float(found.high), len(values))


def difference(first: Sequence[float], second: Sequence[float]) -> Mean:
    """Return the first mean minus the second, by Welch; nan limits where one has fewer than two values."""
    from scipy.stats import ttest_ind  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    count = min(len(first), len(second))
    value = float(np.mean(first) - np.mean(second)) if count else math.nan
    if count < 2 or np.ptp(first) == np.ptp(second) == 0:  # noqa: PLR2004 - one value has no variance
        return Mean(value, math.nan, math.nan, count)
    found = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return Mean(value, float(found.low), float(found.high), count)
