"""The bootstrap: over groups, equal to a plain one, reproducible, and nan where no interval exists."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from peftbench.core.contract import Labels, Logits
from peftbench.errors import DataError, RequestError
from peftbench.statistics import bootstrap


def run(images: int = 120, classes: int = 3, seed: int = 0) -> tuple[Logits, Labels]:
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    logits = rng.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += 1.5
    return logits, labels


def interval(logits: Logits, labels: Labels, groups: Sequence[int], metric: str = "macro_f1") -> bootstrap.Interval:
    return bootstrap.estimate([(logits, labels, groups)], metric).interval


def plain(logits: Logits, labels: Labels, groups: list[int]) -> tuple[float, float]:
    """Return the interval by a plain loop: draw groups, gather their images, score."""
    rng = np.random.default_rng(1)
    members = [np.flatnonzero(np.array(groups) == group) for group in sorted(set(groups))]
    drawn = []
    for _ in range(400):
        index = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        predicted = logits[index].argmax(1)
        drawn.append(f1_score(labels[index], predicted, labels=range(3), average="macro"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("size", [1, 4])
def test_the_interval_is_that_of_drawing_groups_and_scoring_their_images(size: int) -> None:
    logits, labels = run()
    groups = [image // size for image in range(120)]
    found = interval(logits, labels, groups)
    assert (found.low, found.high) == pytest.approx(plain(logits, labels, groups), abs=0.03)


def test_images_of_one_patient_that_agree_widen_the_interval() -> None:
    logits, labels = run(60)
    alone = interval(logits.repeat(5, axis=0), labels.repeat(5), range(300))
    together = interval(logits.repeat(5, axis=0), labels.repeat(5), [image // 5 for image in range(300)])
    assert (alone.clusters, together.clusters) == (300, 60)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_group_numbers_are_only_names() -> None:
    logits, labels = run()
    groups = [image // 4 for image in range(120)]
    assert interval(logits, labels, groups) == interval(logits, labels, [7 * group + 3 for group in groups])


def test_a_report_written_twice_is_the_same() -> None:
    logits, labels = run()
    assert interval(logits, labels, range(120)) == interval(logits, labels, range(120))


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "balanced_accuracy"])
def test_the_score_lies_in_its_interval(metric: str) -> None:
    logits, labels = run()
    found = bootstrap.estimate([(logits, labels, range(120))], metric)
    assert found.interval.low < found.value < found.interval.high
    assert found.interval.level == 0.95


def test_one_group_has_no_interval() -> None:
    logits, labels = run()
    found = interval(logits, labels, [0] * 120)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.clusters == 1


def test_a_score_that_cannot_vary_has_an_interval_of_no_width() -> None:
    _, labels = run()
    found = interval(10 * np.eye(3, dtype=np.float32)[labels], labels, range(120), "accuracy")
    assert (found.low, found.high) == (1.0, 1.0)


def test_the_draws_are_those_of_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = run()
    hits = (logits.argmax(1) == labels).astype(float)
    expected = stats.bootstrap(
        (hits,), np.mean, n_resamples=bootstrap.RESAMPLES, batch=500, rng=np.random.default_rng(bootstrap.SEED)
    ).bootstrap_distribution
    estimate = bootstrap.estimate([(logits, labels, range(120))], "accuracy")
    np.testing.assert_allclose(estimate.draws, expected, rtol=1e-12)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 50_000)  # a large test set is resampled in pieces
    pieces = bootstrap.estimate([(logits, labels, range(120))], "accuracy")
    np.testing.assert_array_equal(pieces.draws, estimate.draws)


def test_a_metric_without_interval_is_refused_by_name() -> None:
    logits, labels = run()
    with pytest.raises(RequestError, match="No interval for the metric 'auc'; choose one of macro_f1, accuracy"):
        interval(logits, labels, range(120), "auc")


def test_seeds_are_averaged() -> None:
    (first, labels), (second, _) = run(seed=0), run(seed=1)
    alone = [bootstrap.estimate([(logits, labels, range(120))]).value for logits in (first, second)]
    both = bootstrap.estimate([(first, labels, range(120)), (second, labels, range(120))])
    assert both.value == pytest.approx(np.mean(alone))


def test_seeds_that_agree_do_not_pass_for_more_patients() -> None:
    logits, labels = run()
    once = bootstrap.estimate([(logits, labels, range(120))])
    thrice = bootstrap.estimate([(logits, labels, range(120))] * 3)
    assert thrice.clusters == 120
    assert (thrice.interval.low, thrice.interval.high) == pytest.approx((once.interval.low, once.interval.high))


def test_test_sets_that_seeds_draw_from_the_same_patients_do_not_narrow_the_interval() -> None:
    """Of one cohort each seed takes another fifth: the mean over seeds is no surer than its patients allow."""

    def studied(number: int) -> bootstrap.Interval:
        rng = np.random.default_rng(number)
        right, labels = rng.random(150) < 0.8, rng.integers(0, 2, 150)
        tests = [rng.permutation(150)[:60] for _ in range(10)]
        shown = np.eye(2, dtype=np.float32)[np.where(right, labels, 1 - labels)]
        return bootstrap.estimate([(shown[test], labels[test], range(60)) for test in tests], "accuracy").interval

    found = [studied(number) for number in range(60)]
    assert {one.clusters for one in found} == {60}
    assert sum(one.low <= 0.8 <= one.high for one in found) >= 54


def test_a_rare_class_that_a_resample_lacks_does_not_pull_the_interval_down() -> None:
    labels = np.repeat([0, 1, 2], [50, 50, 2])
    perfect = np.eye(3, dtype=np.float32)[labels]
    assert interval(perfect, labels, range(102)) == bootstrap.Interval(1.0, 1.0, 0.95, 102)
    unsure = perfect.copy()
    unsure[100] = unsure[0]  # one of the two rare ones is missed
    found = bootstrap.estimate([(unsure, labels, range(102))])
    assert found.interval.low < found.value < found.interval.high


def test_a_class_that_no_image_shows_counts_as_in_the_score() -> None:
    labels = np.repeat([0, 1], 50)
    found = bootstrap.estimate([(np.eye(3, dtype=np.float32)[labels], labels, range(100))])
    assert (found.value, found.interval.low, found.interval.high) == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_data_sets_of_one_size_are_not_resampled_in_step() -> None:
    logits, labels = run()
    one = bootstrap.estimate([(logits, labels, range(120))])
    mean = bootstrap.average([one, one]).interval
    width = one.interval.high - one.interval.low
    assert mean.high - mean.low == pytest.approx(width / math.sqrt(2), rel=0.15)


def test_an_average_with_an_unknown_part_has_no_interval() -> None:
    logits, labels = run()
    unknown = bootstrap.Estimate(0.5, np.empty(0), 0)
    found = bootstrap.average([bootstrap.estimate([(logits, labels, range(120))]), unknown])
    assert math.isnan(found.interval.low)
    assert not math.isnan(found.value)


def test_a_difference_is_resampled_pair_by_pair() -> None:
    better, worse = (*run(seed=0), range(120)), (*run(seed=1), range(120))
    apart = bootstrap.difference([better], [worse])
    scores = [bootstrap.estimate([one]).value for one in (better, worse)]
    assert apart.value == pytest.approx(scores[0] - scores[1])
    assert bootstrap.difference([better], [better]).interval.high == 0


def test_no_difference_of_scores_on_other_images() -> None:
    with pytest.raises(DataError, match="choose runs on the same test set"):
        bootstrap.difference([(*run(), range(120))], [(*run(119), range(119))])


def test_a_ratio_is_resampled_pair_by_pair() -> None:
    first, second = (*run(seed=0), range(120)), (*run(seed=1), range(120))
    apart = bootstrap.ratio([first], [second])
    scores = [bootstrap.estimate([one]).value for one in (first, second)]
    assert apart.value == pytest.approx(scores[0] / scores[1])
    same = bootstrap.ratio([first, first], [first]).interval
    assert (same.low, same.high) == pytest.approx((1, 1))


def test_a_ratio_to_a_score_of_zero_is_unknown() -> None:
    labels = np.arange(4) % 2
    wrong = np.eye(2, dtype=np.float32)[1 - labels]
    found = bootstrap.ratio([(wrong, labels, range(4))], [(wrong, labels, range(4))])
    assert math.isnan(found.value)
    assert math.isnan(found.interval.low)


def test_a_draw_without_a_ratio_is_left_out() -> None:
    labels = np.arange(4) % 2
    right = np.eye(2, dtype=np.float32)[labels]
    half = right.copy()
    half[:2] = half[1::-1]  # two of four images right: some resamples hold only the others
    found = bootstrap.ratio([(half, labels, range(4))], [(half, labels, range(4))])
    assert found.draws.shape == (bootstrap.RESAMPLES,)
    assert (found.interval.low, found.interval.high) == (1, 1)
