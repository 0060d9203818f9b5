"""Predictions per patient from those per image."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from peftbench.statistics.by_group import by_group, group_means


def test_the_prediction_of_a_group_is_the_mean_probability_of_its_images() -> None:
    chances = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    logits, labels = np.log(chances).astype(np.float32), np.array([0, 0, 1, 1])
    found, truth, groups = by_group((logits, labels, (7, 7, 3, 3)))
    np.testing.assert_allclose(np.exp(found), [[0.25, 0.75], [0.65, 0.35]], rtol=1e-6)  # by group number
    assert truth.tolist() == [1, 0]
    assert list(groups) == [0, 1]


def test_a_group_of_two_labels_is_left_out() -> None:
    found, truth, groups = by_group((np.zeros((3, 2), np.float32), np.array([0, 1, 1]), (0, 0, 1)))
    assert (found.shape, truth.tolist(), list(groups)) == ((1, 2), [1], [0])


def test_groups_that_are_left_out_are_counted() -> None:
    logits = np.array([[1, 0], [3, 0], [0, 1], [5, 0]], np.float32)
    means, labels, left_out = group_means(logits, np.array([0, 0, 1, 0]), ["p", "p", "q", "q"])
    assert (means.tolist(), labels.tolist(), left_out) == ([[2, 0]], [0], 1)


def test_several_labels_are_averaged_one_by_one() -> None:
    logits = np.array([[4.0, -2.0], [0.0, -2.0]], np.float32)
    found, truth, _ = by_group((logits, np.array([[1, 0], [1, 0]]), (5, 5)))
    np.testing.assert_allclose(found, [logit(expit(logits.astype(np.float64)).mean(0))], rtol=1e-6)
    assert truth.tolist() == [[1, 0]]


def test_a_certain_prediction_stays_finite() -> None:
    found, _, _ = by_group((np.array([[1000.0, -1000.0]], np.float32), np.array([0]), (0,)))
    assert np.isfinite(found).all()
