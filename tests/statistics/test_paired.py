"""Two methods on the same images: what is called a difference must be one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from peftbench.errors import DataError
from peftbench.statistics.bootstrap import Predictions
from peftbench.statistics.paired import Comparison, average, jackknife
from peftbench.statistics.paired import compare as paired
from tests.ties import tie

NAN = math.nan


def compare(first: list[Predictions], second: list[Predictions], metric: str, score: Any = None) -> Comparison:
    return paired(*([jackknife(run, metric, score) for run in runs] for runs in (first, second)))


def run(right: NDArray[np.bool_], groups: NDArray[np.int64] | None = None) -> Predictions:
    """Return predictions of two alternating classes that are correct where `right` is true."""
    labels = np.arange(len(right)) % 2
    logits = np.eye(2, dtype=np.float32)[np.where(right, labels, 1 - labels)]
    return logits, labels, list(range(len(right))) if groups is None else groups.tolist()


def test_one_seed_and_one_image_a_group_is_the_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.random(60) < 0.8, draw.random(60) < 0.6
    found = compare([run(first)], [run(second)], "accuracy")
    expected = stats.ttest_rel(first.astype(float), second.astype(float))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.groups, found.seeds, found.freedom) == (60, 1, 59)


def test_images_of_one_group_count_as_one_observation() -> None:
    draw = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 3)
    first, second = draw.random(60) < 0.8, draw.random(60) < 0.6
    found = compare([run(first, groups)], [run(second, groups)], "accuracy")
    means = (first.astype(float) - second.astype(float)).reshape(20, 3).mean(1)
    assert found.error == pytest.approx(means.std(ddof=1) / math.sqrt(20))
    assert found.freedom == 19


def test_a_seed_repeated_adds_no_knowledge() -> None:
    draw = np.random.default_rng(2)
    first, second = draw.random(60) < 0.8, draw.random(60) < 0.6
    once = compare([run(first)], [run(second)], "macro_f1")
    thrice = compare([run(first)] * 3, [run(second)] * 3, "macro_f1")
    assert thrice.difference == once.difference
    assert thrice.error == pytest.approx(once.error)


def test_seeds_that_differ_widen_the_interval() -> None:
    """Accuracies .9, .7 and .5 against .5: the mean difference is .2, and three seeds say little about it."""
    steps = [run(np.arange(1000) % 10 < right) for right in (9, 7, 5)]
    found = compare(steps, [run(np.arange(1000) % 10 < 5)] * 3, "accuracy")
    assert found.difference == pytest.approx(0.2)
    assert found.error == pytest.approx(0.2 / math.sqrt(3), rel=0.01)
    assert found.freedom == pytest.approx(2, abs=0.1)
    assert found.p > 0.2


def test_a_method_is_no_better_than_itself() -> None:
    one = [run(np.arange(30) % 3 > 0)] * 2
    found = compare(one, one, "macro_f1")
    assert (found.difference, found.p, found.interval, found.detectable) == (0.0, 1.0, (0.0, 0.0), 0.0)


def test_one_group_gives_no_interval() -> None:
    found = compare([run(np.ones(4, bool), np.zeros(4, int))], [run(np.zeros(4, bool), np.zeros(4, int))], "accuracy")
    assert found.difference == 1.0
    assert np.isnan([found.p, *found.interval, found.detectable]).all()


def test_other_test_images_are_refused() -> None:
    with pytest.raises(DataError, match="do not share their test images"):
        compare([run(np.ones(4, bool))], [run(np.ones(6, bool))], "accuracy")
    with pytest.raises(DataError, match="do not share their test images"):
        compare([run(np.ones(4, bool))] * 2, [run(np.ones(4, bool))], "accuracy")


def test_test_sets_of_each_seed_count_as_one() -> None:
    """Seeds that cut test sets of their own may share patients: more of them narrow nothing by themselves."""
    draw = np.random.default_rng(3)
    first, second = ([run(draw.random(n) < p) for n in (80, 82, 84)] for p in (0.8, 0.6))
    found = compare(first, second, "accuracy")
    each = [compare([one], [other], "accuracy").error for one, other in zip(first, second, strict=True)]
    assert found.error >= math.sqrt(np.mean(np.square(each))) - 1e-12
    assert found.groups == 84


@given(st.integers(0, 10_000), st.sampled_from(["macro_f1", "accuracy", "auc"]), st.integers(1, 3))
def test_swapping_the_methods_turns_the_sign_only(seed: int, metric: str, seeds: int) -> None:
    first, second = tie(np.random.default_rng(seed), groups=12, seeds=seeds)
    one, other = compare(first, second, metric), compare(second, first, metric)
    assert other.difference == pytest.approx(-one.difference)
    assert other.error == pytest.approx(one.error)
    assert other.p == pytest.approx(one.p)
    assert 0 <= one.p <= 1


@pytest.mark.parametrize("task", ["single", "multi_label"])
def test_auc_and_its_error_are_delong_s(task: str) -> None:
    """The area is scikit-learn's; the variance is that of leaving out one image at a time."""
    draw, many = np.random.default_rng(4), task == "multi_label"
    labels = draw.integers(0, 2, (80, 2)) if many else draw.integers(0, 3, 80)
    logits = draw.normal(size=(80, 2 if many else 3)).astype(np.float32)
    logits += labels if many else np.eye(3, dtype=np.float32)[labels]
    found = jackknife((logits, labels, list(range(80))), "auc")
    shares = logits if many else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def area(kept: NDArray[np.int64]) -> float:
        return float(roc_auc_score(labels[kept], shares[kept], multi_class="ovr"))

    everyone = np.arange(80)
    assert found.value == pytest.approx(area(everyone))
    left = np.asarray([area(np.delete(everyone, one)) for one in everyone])
    assert np.var(found.deviations) == pytest.approx(np.var(79 * left), rel=0.05)
    assert found.deviations.sum() == pytest.approx(0, abs=1e-9)


def test_any_metric_can_be_compared_by_its_function() -> None:
    first, second = tie(np.random.default_rng(5), groups=15, seeds=2)
    accuracy = lambda logits, labels: float((logits.argmax(1) == labels).mean())  # noqa: E731
    assert compare(first, second, "mine", accuracy).p == pytest.approx(compare(first, second, "accuracy").p)
    with pytest.raises(DataError, match="needs the function"):
        compare(first, second, "mine")


def tied(draw: np.random.Generator, seeds: int) -> Comparison:
    first, second = tie(draw, groups=40, seeds=seeds)
    return compare(first, second, "macro_f1")


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_tie_in_twenty_is_called_a_difference(seeds: int) -> None:
    """Three hundred ties, whose binomial error is .013; `nox -s calibration` draws 2,000 of each size."""
    draw = np.random.default_rng(6)
    found = [tied(draw, seeds).p < 0.05 for _ in range(300)]
    assert 0.015 <= np.mean(found) <= 0.085


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    found = Comparison(0.0, 0.02, 1e6, 400, 1)
    assert found.detectable == pytest.approx(0.02 * (1.959964 + 0.841621), rel=1e-4)
    assert Comparison(0.0, NAN, NAN, 1, 1).detectable != 0


def test_data_sets_are_averaged_as_independent() -> None:
    found = average([Comparison(0.02, 0.03, 20, 21, 3), Comparison(0.04, 0.04, 30, 31, 3)])
    assert found.difference == pytest.approx(0.03)
    assert found.error == pytest.approx(0.025)
    assert 20 < found.freedom < 50
    assert (found.groups, found.seeds) == (52, 3)
    assert average([Comparison(0.0, 0.0, 9, 10, 1)] * 2).p == 1.0
