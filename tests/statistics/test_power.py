"""What would decide a comparison: projections agree with what more groups and seeds then show."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peftbench.errors import DataError
from peftbench.statistics.paired import Comparison, Components, Jackknife, average, compare, jackknife, projected
from peftbench.statistics.power import needed
from tests.ties import tie

PARTS = ("groups", "seeds", "interaction")


def runs(groups: int, seeds: int, shift: float, draw: np.random.Generator) -> tuple[list[Jackknife], list[Jackknife]]:
    first, second = tie(draw, groups, seeds, shift=shift, seed_noise=0.05)
    return [jackknife(run, "macro_f1") for run in first], [jackknife(run, "macro_f1") for run in second]


def test_the_same_seeds_and_groups_have_the_same_error() -> None:
    draw = np.random.default_rng(0)
    for groups, seeds in ((60, 3), (40, 5), (90, 1)):
        found = compare(*runs(groups, seeds, 0.3, draw))
        assert projected(found, seeds, 1.0).error == pytest.approx(found.error)


def test_more_groups_and_more_seeds_make_the_error_smaller() -> None:
    found = compare(*runs(60, 3, 0.3, np.random.default_rng(1)))
    assert projected(found, 3, 4.0).error < projected(found, 6, 1.0).error < found.error
    both = average([found, found])
    assert projected(both, 3, 1.0).error == pytest.approx(both.error)


def test_the_projected_error_is_what_a_larger_test_set_has() -> None:
    draw = np.random.default_rng(2)
    small = np.mean([projected(compare(*runs(50, 3, 0.0, draw)), 3, 6.0).error for _ in range(30)])
    large = np.mean([compare(*runs(300, 3, 0.0, draw)).error for _ in range(30)])
    assert small == pytest.approx(large, rel=0.15)


def test_the_needed_numbers_are_the_smallest_that_decide() -> None:
    weak = projected(Comparison(0.06, 1.0, 9, 60, 3, Components(0.01, 2e-5, 0.2)), 3, 1.0)
    more = needed(weak)
    assert more.groups is not None
    assert projected(weak, 3, more.groups).detectable <= weak.difference
    assert projected(weak, 3, more.groups / 1.1).detectable > weak.difference
    assert more.seeds is not None
    assert projected(weak, more.seeds, 1.0).detectable <= weak.difference
    assert projected(weak, more.seeds - 1, 1.0).detectable > weak.difference


def test_seeds_that_differ_much_are_not_made_up_for_by_groups() -> None:
    noisy = Comparison(0.05, 0.06, 2, 60, 3, Components(0.005, 0.005, 0.0))
    more = needed(noisy)
    assert more.groups is None
    assert more.seeds is not None
    crowded = Comparison(0.05, 0.06, 50, 60, 3, Components(0.5, 0.0005, 0.0))
    assert needed(crowded).seeds is None
    assert needed(crowded).groups_and_seeds is not None


def test_what_is_decided_needs_no_more() -> None:
    found = compare(*runs(200, 5, 2.0, np.random.default_rng(4)))
    more = needed(found)
    assert more.seeds == 5
    assert more.groups == pytest.approx(1.0, rel=0.02)


def test_one_seed_says_nothing_of_more_seeds() -> None:
    assert needed(compare(*runs(60, 1, 0.2, np.random.default_rng(5)))).seeds is None


def test_equal_scores_and_unknown_errors_need_nothing() -> None:
    nothing = needed(Comparison(0.0, 0.02, 9, 10, 3))
    assert (nothing.seeds, nothing.groups) == (None, None)
    unknown = Comparison(0.1, math.nan, math.nan, 1, 3)
    assert needed(unknown).groups is None
    with pytest.raises(DataError, match="at least two groups"):
        projected(unknown, 3, 2.0)


def test_seeds_with_test_sets_of_their_own_are_projected_too() -> None:
    draw = np.random.default_rng(6)
    pairs = [runs(60, 1, 0.3, draw) for _ in range(3)]
    found = compare([first[0] for first, _ in pairs], [second[0] for _, second in pairs])
    assert projected(found, 3, 1.0).error == pytest.approx(found.error)


@pytest.mark.parametrize("seeds", [1, 3])
def test_as_many_groups_as_needed_find_the_difference_in_about_80_of_100_studies(seeds: int) -> None:
    """Simulated: 120 studies of the size that the components of 20 large ones ask for."""
    draw = np.random.default_rng(seeds)
    large = [compare(*runs(400, seeds, 0.25, draw)) for _ in range(20)]
    found = [one.components for one in large if one.components]
    mean = Components(*(float(np.mean([getattr(one, name) for one in found])) for name in PARTS))
    difference = float(np.mean([one.difference for one in large]))
    more = needed(projected(Comparison(difference, 1.0, 9, 100, seeds, mean), seeds, 1.0))
    assert more.groups is not None
    studies = [compare(*runs(math.ceil(100 * more.groups), seeds, 0.25, draw)) for _ in range(120)]
    assert 0.65 < np.mean([one.p < 0.05 for one in studies]) < 0.92
