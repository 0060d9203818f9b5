"""Temperature scaling finds the temperature that was applied."""

from __future__ import annotations

import numpy as np
import pytest

from peftbench.training.calibration import fit_temperature


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scaling(heat: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in chances])
    assert fit_temperature((heat * logits).astype(np.float32), labels) == pytest.approx(heat, rel=0.1)


def test_the_temperature_of_several_labels_an_image() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 2))
    labels = (rng.random((4000, 2)) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    assert fit_temperature((2 * logits).astype(np.float32), labels) == pytest.approx(2, rel=0.1)


def test_a_perfect_model_gets_the_lowest_temperature() -> None:
    labels = np.array([0, 1] * 10)
    assert fit_temperature(np.eye(2, dtype=np.float32)[labels], labels) == pytest.approx(0.05, rel=0.01)
