"""The loops that the bench compares must do the same work."""

from __future__ import annotations

import pytest
import torch

from peftbench.benchmarks import bench
from peftbench.core.recipe import Recipe
from tests.networks import CLASSES, classifier

RECIPE = Recipe(lr=0.05, batch=8, steps=5, precision="fp32")


def test_the_engine_and_the_plain_loop_end_with_the_same_weights() -> None:
    model = classifier(dtype=torch.float32)
    own, theirs = (
        dict(train().named_parameters()) for train in bench.training_loops(model, 32, RECIPE, CLASSES).values()
    )
    for name, before in model.named_parameters():
        torch.testing.assert_close(own[name], theirs[name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(own[name], before), name


def test_a_plain_loop_that_diverges_is_no_measure() -> None:
    model = classifier(dtype=torch.float32)
    with torch.no_grad():
        model.head.linear.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="diverged"):
        bench.training_loops(model, 32, RECIPE, CLASSES)["plain"]()


def test_without_times_the_gates_that_decide_are_left_and_hold() -> None:
    found = bench.run(timed=False)
    assert len(found) == 5
    assert [gate.name for gate in found if not gate.decides or not gate.passed] == []
