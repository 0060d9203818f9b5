"""Means with intervals, and differences of means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peftbench.statistics.means import difference, mean


def test_intervals_cover_the_mean_in_95_of_100_samples() -> None:
    draw = np.random.default_rng(0)
    found = [mean(draw.normal(3, 1, 5).tolist()) for _ in range(1000)]
    assert np.mean([one.low <= 3 <= one.high for one in found]) == pytest.approx(0.95, abs=0.02)


def test_equal_values_have_no_width_and_one_value_no_interval() -> None:
    same = mean([0.5] * 4)
    assert (same.low, same.high) == (0.5, 0.5)
    assert math.isnan(mean([0.5]).low)
    assert math.isnan(mean([]).value)


def test_differences_need_two_values_on_both_sides() -> None:
    found = difference([0.1, 0.2, 0.15], [0.6, 0.7])
    assert found.value == pytest.approx(-0.5)
    assert found.low < -0.5 < found.high < 0
    assert math.isnan(difference([0.1, 0.2], [0.6]).low)
    assert math.isnan(difference([], [0.6]).value)
