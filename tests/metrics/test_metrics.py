"""Every metric against scikit-learn, and what is undefined is nan without a warning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as reference

from peftbench.contract import Labels, Logits
from peftbench.errors import DataError
from peftbench.metrics import accuracy, auc, balanced_accuracy, macro_f1, per_class


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
def test_recall_of_each_class_is_scikit_learns(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    found = reference.confusion_matrix(labels, logits.argmax(1), labels=range(classes), normalize="true")
    assert list(per_class.plugin(logits, labels).values()) == pytest.approx(np.diagonal(found).tolist())


@several
def test_auc_is_scikit_learns_one_against_the_rest(classes: int, extra: int, seed: int) -> None:
    logits, labels = scores(classes, classes + extra, seed)
    chances = softmax(logits.astype(np.float64), axis=1).round(12)  # rounding restores ties that softmax breaks
    each = [reference.roc_auc_score(labels == one, chances[:, one]) for one in range(classes)]
    assert auc.plugin(logits, labels) == pytest.approx(np.mean(each), abs=1e-9)


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


@pytest.mark.parametrize("metric", [macro_f1.plugin, accuracy.plugin, balanced_accuracy.plugin, auc.plugin])
def test_no_images_no_score(metric: Any) -> None:
    assert math.isnan(metric(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)))


def test_logits_of_other_images_are_refused_with_both_shapes() -> None:
    with pytest.raises(DataError, match=r"\(4, 3\).*\(5,\)"):
        accuracy.plugin(np.zeros((4, 3), np.float32), np.zeros(5, np.int64))


def test_labels_beyond_the_logits_are_refused() -> None:
    with pytest.raises(DataError, match="Labels from 0 to 3 do not fit logits of 3 classes"):
        macro_f1.plugin(np.zeros((2, 3), np.float32), np.array([0, 3]))
