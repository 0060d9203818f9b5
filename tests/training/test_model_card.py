"""What a model says of itself: its temperature, and what its training images looked like."""

from __future__ import annotations

import numpy as np
import pytest

from peftbench.training.model_card import look, temperature


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scaling(heat: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in chances])
    assert temperature((heat * logits).astype(np.float32), labels) == pytest.approx(heat, rel=0.1)


def test_the_temperature_of_several_labels_an_image() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 2))
    labels = (rng.random((4000, 2)) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    assert temperature((2 * logits).astype(np.float32), labels) == pytest.approx(2, rel=0.1)


def test_a_perfect_model_gets_the_coldest_temperature() -> None:
    labels = np.array([0, 1] * 10)
    assert temperature(np.eye(2, dtype=np.float32)[labels], labels) == pytest.approx(0.05, rel=0.01)


def test_the_look_of_images() -> None:
    grey = np.repeat(np.arange(0, 200, 2, dtype=np.uint8).reshape(100, 1, 1, 1), 3, axis=1) * np.ones((4, 4), np.uint8)
    red = np.zeros((100, 3, 4, 4), np.uint8)
    red[:, 0] = 200
    assert look(grey)["grey"] == 1
    assert look(red)["grey"] == 0
    assert look(grey)["mean"] == pytest.approx([0, 198], abs=2)
    assert look(red)["contrast"][0] == pytest.approx(200 * np.sqrt(2) / 3, abs=0.01)
