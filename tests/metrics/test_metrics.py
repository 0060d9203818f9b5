"""Every metric against scikit-learn, and what is undefined is nan without a warning."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn import metrics
from sklearn.calibration import calibration_curve

from peftbench.core.contract import Labels, Logits, lower_is_better
from peftbench.core.registry import registry
from peftbench.errors import DataError
from peftbench.metrics import (
    accuracy,
    auc,
    average_precision,
    balanced_accuracy,
    brier_score_loss,
    calibration_error,
    macro_f1,
    matthews,
    per_class,
    positive_f1,
    quadratic_kappa,
    sensitivity,
    weighted_f1,
)
from peftbench.training import record_writer

reference: Any = metrics  # its types allow no number for zero_division


def scores(classes: int, images: int, seed: int) -> tuple[Logits, Labels]:
    """Random logits, half of them rounded so that there are ties, and labels in which every class occurs."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes)).astype(np.float32)
    logits[::2] = logits[::2].round()
    return logits, rng.permutation(np.arange(images) % classes).astype(np.int64)


several = given(classes=st.integers(2, 9), extra=st.integers(0, 60), seed=st.integers(0, 2**32 - 1))


@several
def test_macro_f1_is_scikit_learns_over_all_classes(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    every = range(classes)
    wanted = reference.f1_score(labels, logits.argmax(1), labels=every, average="macro")
    assert macro_f1.plugin(logits, labels) == pytest.approx(wanted)


@several
def test_accuracy_is_scikit_learns(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    assert accuracy.plugin(logits, labels) == pytest.approx(reference.accuracy_score(labels, logits.argmax(1)))


@several
def test_balanced_accuracy_is_scikit_learns(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    wanted = reference.balanced_accuracy_score(labels, logits.argmax(1))
    assert balanced_accuracy.plugin(logits, labels) == pytest.approx(wanted)


@several
def test_recall_and_precision_of_each_class_are_scikit_learns(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    wanted = [
        score(labels, logits.argmax(1), labels=range(classes), average=None, zero_division=np.nan)
        for score in (reference.recall_score, reference.precision_score)
    ]
    found = per_class.plugin(logits, labels)
    assert list(found) == [f"{name}_{one}" for name in ("recall", "precision") for one in range(classes)]
    assert list(found.values()) == pytest.approx(np.concatenate(wanted).tolist(), nan_ok=True)


@several
def test_weighted_f1_is_scikit_learns(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    wanted = reference.f1_score(labels, logits.argmax(1), average="weighted", zero_division=0.0)
    assert weighted_f1.plugin(logits, labels) == pytest.approx(wanted)


@several
def test_brier_score_loss_is_scikit_learns_halved(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    chances, every = softmax(logits.astype(np.float64), axis=1), range(classes)
    hits = np.asarray([reference.brier_score_loss(labels == one, chances[:, one]) for one in every])
    assert brier_score_loss.plugin(logits, labels) == pytest.approx(hits.sum() / 2)


@several
def test_quadratic_kappa_is_scikit_learns(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    wanted = reference.cohen_kappa_score(labels, logits.argmax(1), labels=range(classes), weights="quadratic")
    assert quadratic_kappa.plugin(logits, labels) == pytest.approx(wanted, nan_ok=True)


@several
def test_auc_is_scikit_learns_one_against_the_rest(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    chances = softmax(logits.astype(np.float64), axis=1).round(12)  # rounding restores ties that softmax breaks
    each = [reference.roc_auc_score(labels == one, chances[:, one]) for one in range(classes)]
    assert auc.plugin(logits, labels) == pytest.approx(np.mean(each), abs=1e-9)


@given(images=st.integers(2, 200), seed=st.integers(0, 2**32 - 1))
def test_two_classes_have_a_positive_one(images: int, seed: int) -> None:
    logits, labels = scores(2, images, seed)
    assert positive_f1.plugin(logits, labels) == pytest.approx(reference.f1_score(labels, logits.argmax(1)))
    false, true, _ = reference.roc_curve(labels, logits[:, 1] - logits[:, 0])
    found = sensitivity.plugin(logits, labels)
    for percent in (90, 95):
        best = max(t for f, t in zip(false, true, strict=True) if round(f * 100, 6) <= 100 - percent)
        assert found[f"sensitivity_at_{percent}_specificity"] == pytest.approx(best)
        best = max(1 - f for f, t in zip(false, true, strict=True) if round(t * 100, 6) >= percent)
        assert found[f"specificity_at_{percent}_sensitivity"] == pytest.approx(best)
    assert average_precision.plugin(logits, labels) == pytest.approx(
        reference.average_precision_score(labels, logits[:, 1] - logits[:, 0])
    )


@several
def test_matthews_correlation_and_average_precision_of_several_classes(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    assert matthews.plugin(logits, labels) == pytest.approx(reference.matthews_corrcoef(labels, logits.argmax(1)))
    if classes > 2:
        chances = softmax(logits.astype(np.float64), axis=1).round(12)
        wanted = reference.average_precision_score(np.eye(classes)[labels], chances, average="macro")
        assert average_precision.plugin(logits, labels) == pytest.approx(wanted, abs=1e-9)


def test_average_precision_of_several_labels_and_of_an_absent_class() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, (40, 3)), rng.normal(size=(40, 3)).astype(np.float32)
    wanted = reference.average_precision_score(labels, logits, average="macro")
    assert average_precision.plugin(logits, labels) == pytest.approx(wanted)
    assert math.isnan(average_precision.plugin(logits, np.zeros(40, np.int64)))


def test_the_first_of_two_classes_may_be_the_positive_one() -> None:
    logits, labels = scores(2, 50, 1)
    logits += np.random.default_rng(2).normal(size=logits.shape).astype(np.float32)  # no ties, which class 0 would win
    swapped = logits[:, ::-1].copy(), 1 - labels
    plain = record_writer.compute_metrics(*swapped)
    found = record_writer.compute_metrics(logits, labels, positive=0)
    of_positive = {"positive_f1", "average_precision", "sensitivity_at_95_specificity", "specificity_at_90_sensitivity"}
    assert {name: found[name] for name in of_positive} == {name: plain[name] for name in of_positive}
    assert found["positive_f1"] != record_writer.compute_metrics(logits, labels)["positive_f1"]
    assert found["recall_0"] == plain["recall_1"]  # classes keep their numbers


def test_what_needs_a_positive_class_is_undefined_for_three() -> None:
    logits, labels = scores(3, 30, 0)
    assert math.isnan(positive_f1.plugin(logits, labels))
    assert all(map(math.isnan, sensitivity.plugin(logits, labels).values()))


def test_sensitivity_of_a_small_example() -> None:
    """Of 20 well people 1 may be alarmed at 95%, 2 at 90%; the ill stand between them."""
    score = np.array([*range(20), 18.5, 17.5, 5.5, 19.5], np.float32)
    labels = np.array([0] * 20 + [1] * 4)
    found = sensitivity.plugin(np.stack([np.zeros_like(score), score], 1), labels)
    assert {name: value for name, value in found.items() if name.startswith("sensitivity")} == {
        "sensitivity_at_90_specificity": 0.75,
        "sensitivity_at_95_specificity": 0.5,
    }


@several
def test_calibration_error_is_the_binned_gap(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    chances = softmax(logits.astype(np.float64), axis=1)
    confidence, right, total = chances.max(1), logits.argmax(1) == labels, 0.0
    for low, high in itertools.pairwise(np.arange(16) / 15):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error.plugin(logits, labels) == pytest.approx(total)


def test_calibration_error_is_scikit_learns_curve_weighed_by_its_bins() -> None:
    logits, labels = scores(4, 500, 3)
    confidence = softmax(logits.astype(np.float64), axis=1).max(1)
    share, mean = calibration_curve(logits.argmax(1) == labels, confidence, n_bins=15)
    images, _ = np.histogram(confidence, bins=15, range=(0, 1))
    wanted = np.sum(np.abs(share - mean) * images[images > 0]) / 500
    assert calibration_error.plugin(logits, labels) == pytest.approx(wanted)


def test_a_sure_and_right_prediction_is_perfectly_calibrated() -> None:
    labels = np.arange(9) % 3
    sure = np.eye(3, dtype=np.float32)[labels] * 1000
    assert calibration_error.plugin(sure, labels) == brier_score_loss.plugin(sure, labels) == 0.0
    assert calibration_error.plugin(-sure, labels) == 0.5


# --- several labels an image -----------------------------------------------------------------------------------------


def findings(images: int, labels: int, seed: int) -> tuple[Logits, Labels]:
    """Random logits, and labels each present in one image and absent in another."""
    rng = np.random.default_rng(seed)
    present = rng.integers(2, size=(images, labels))
    present[:2] = [[0] * labels, [1] * labels]
    return rng.normal(size=(images, labels)).astype(np.float32), present


@given(images=st.integers(2, 60), labels=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_multi_label_metrics_are_scikit_learns(images: int, labels: int, seed: int) -> None:
    logits, truth = findings(images, labels, seed)
    chances = expit(logits.astype(np.float64))
    shown, each = chances > 0.5, [(truth[:, one], chances[:, one]) for one in range(labels)]
    wanted = {
        macro_f1: np.mean([reference.f1_score(y, p > 0.5, zero_division=0.0) for y, p in each]),
        weighted_f1: np.average([reference.f1_score(y, p > 0.5) for y, p in each], weights=truth.sum(0)),
        accuracy: np.mean(shown == truth),
        balanced_accuracy: np.mean([reference.balanced_accuracy_score(y, p > 0.5) for y, p in each]),
        auc: np.mean([reference.roc_auc_score(y, p) for y, p in each]),
        brier_score_loss: np.mean([reference.brier_score_loss(y, p) for y, p in each]),
    }
    assert {m: m.plugin(logits, truth) for m in wanted} == pytest.approx(wanted)
    recalls = [reference.recall_score(y, p > 0.5) for y, p in each]
    assert list(per_class.plugin(logits, truth).values())[:labels] == pytest.approx(recalls)


def test_a_label_that_all_or_none_have_leaves_auc_undefined() -> None:
    logits, truth = findings(9, 3, 0)
    for value in (0, 1):
        assert math.isnan(auc.plugin(logits, np.where(np.arange(3) == 1, value, truth)))


def test_multi_label_labels_are_zero_or_one() -> None:
    with pytest.raises(DataError, match="must be 0 or 1, got 0 to 2"):
        macro_f1.plugin(np.zeros((2, 2), np.float32), np.array([[0, 1], [2, 1]]))
    with pytest.raises(DataError, match=r"\(2, 3\).*\(2, 2\)"):
        macro_f1.plugin(np.zeros((2, 3), np.float32), np.array([[0, 1], [0, 1]]))


# --- what is undefined -----------------------------------------------------------------------------------------------


def test_auc_of_two_classes_is_the_binary_auc() -> None:
    logits, labels = scores(2, 50, 0)
    wanted = reference.roc_auc_score(labels, logits[:, 1].astype(np.float64) - logits[:, 0])
    assert auc.plugin(logits, labels) == pytest.approx(wanted)


def test_auc_tells_confident_images_apart() -> None:
    logits = np.array([[0, 100], [0, 200], [0, 300], [0, 400]], np.float32)
    assert auc.plugin(logits, np.array([0, 0, 1, 1])) == 1.0


def test_a_constant_prediction_has_auc_one_half() -> None:
    assert auc.plugin(np.tile(np.array([0.2, 0.5, 0.3], np.float32), (9, 1)), np.arange(9) % 3) == pytest.approx(0.5)


def test_auc_is_undefined_where_a_class_is_absent() -> None:
    logits, labels = scores(3, 30, 0)
    assert math.isnan(auc.plugin(logits, np.where(labels == 2, 0, labels)))


def test_an_absent_class_has_no_recall_and_leaves_balanced_accuracy_to_the_others() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    labels = np.array([0, 0, 1, 1])
    recalls = per_class.plugin(logits, labels)
    assert (recalls["recall_0"], recalls["recall_1"]) == (1.0, 0.5)
    assert math.isnan(recalls["recall_2"])
    assert balanced_accuracy.plugin(logits, labels) == 0.75


@pytest.mark.parametrize("name", registry("metrics").names())
def test_no_images_no_score(name: str) -> None:
    found = registry("metrics").get(name)(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    assert all(map(math.isnan, found.values() if isinstance(found, dict) else [found]))


def test_kappa_of_one_grade_throughout_is_undefined() -> None:
    assert math.isnan(quadratic_kappa.plugin(np.eye(3, dtype=np.float32)[[1, 1]], np.array([1, 1])))


@pytest.mark.parametrize(
    ("metric", "lower"), [("brier_score_loss", True), ("calibration_error_per_group", True), ("macro_f1", False)]
)
def test_a_name_determines_which_direction_is_better(metric: str, lower: bool) -> None:  # noqa: FBT001
    assert lower_is_better(metric) is lower


def test_logits_of_other_images_are_refused_with_both_shapes() -> None:
    with pytest.raises(DataError, match=r"\(4, 3\).*\(5,\)"):
        accuracy.plugin(np.zeros((4, 3), np.float32), np.zeros(5, np.int64))


def test_labels_beyond_the_logits_are_refused() -> None:
    with pytest.raises(DataError, match="Labels from 0 to 3 do not match logits of 3 classes"):
        macro_f1.plugin(np.zeros((2, 3), np.float32), np.array([0, 3]))
