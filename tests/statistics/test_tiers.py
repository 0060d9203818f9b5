"""Ties stay ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from peftbench.statistics.ranks import critical_difference, ranks, signed_rank_p
from peftbench.statistics.tiers import holm, tiers, verdict


def test_holm_multiplies_the_smallest_by_their_number_and_never_turns_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.02])[::2] == pytest.approx([0.5, 0.04])
    assert math.isnan(holm([0.5, math.nan])[1])
    assert holm([]) == []


def test_what_nothing_beats_is_in_the_first_tier() -> None:
    worse = {("c", "a"), ("d", "a"), ("d", "b")}
    assert tiers(["a", "b", "c", "d"], worse) == [["a", "b"], ["c", "d"]]
    assert tiers(["a", "b", "c"], set()) == [["a", "b", "c"]]
    assert tiers(["a", "b", "c"], {("b", "a"), ("c", "b"), ("c", "a")}) == [["a"], ["b"], ["c"]]


@given(st.sets(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde"))))
def test_every_name_is_in_one_tier(worse: set[tuple[str, str]]) -> None:
    assert sorted(name for tier in tiers("abcde", worse) for name in tier) == list("abcde")


def test_a_verdict_needs_a_small_p() -> None:
    assert verdict(0.1, 0.01) == "better"
    assert verdict(-0.1, 0.01) == "worse"
    assert verdict(0.1, 0.05) == "no difference shown"
    assert verdict(0.1, math.nan) == "unknown"


@pytest.mark.parametrize(("methods", "q"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_uses_demsar_s_table_5(methods: int, q: float) -> None:
    expected = q * math.sqrt(methods * (methods + 1) / (6 * 14))
    assert critical_difference(methods, 14) == pytest.approx(expected, rel=1e-3)


def test_average_ranks_share_ties_and_rank_the_highest_score_first() -> None:
    found = ranks(["a", "b", "c"], np.asarray([[0.9, 0.9, 0.1], [0.9, 0.5, 0.1]]))
    assert found.average == (1.25, 1.75, 3.0)
    assert found.datasets == 2


def test_few_data_sets_can_show_little() -> None:
    found = ranks(["a", "b", "c"], np.asarray([[0.9, 0.5, 0.1]] * 3))
    assert found.least_p == 0.25
    assert min(p for *_, p in found.wilcoxon) >= 0.25
    assert found.critical == pytest.approx(critical_difference(3, 3))


def test_equal_methods_and_missing_scores() -> None:
    assert ranks(["a", "b", "c"], np.ones((4, 3))).friedman == 1.0
    assert math.isnan(ranks(["a", "b"], np.ones((4, 2))).friedman)
    with pytest.raises(ValueError, match="score on every data set"):
        ranks(["a", "b", "c"], np.asarray([[0.9, math.nan, 0.1]] * 3))


@pytest.mark.parametrize("datasets", [2, 5, 9])
def test_signed_ranks_are_those_of_scipy_with_ties_and_zeros(datasets: int) -> None:
    draw = np.random.default_rng(datasets)
    apart = draw.integers(-2, 4, (datasets, 6)) / 10
    apart[:, 0] = draw.normal(size=datasets)
    apart[0, 1:] = 0.1  # a column of zeros has no test
    expected = [wilcoxon(column, zero_method="zsplit").pvalue for column in apart.T]
    assert signed_rank_p(apart) == pytest.approx(expected)


def test_differences_of_zero_have_a_p_value_of_one() -> None:
    assert signed_rank_p(np.zeros((4, 2))).tolist() == [1.0, 1.0]
    assert signed_rank_p(np.zeros((20, 1))).tolist() == [1.0]
