"""The bare loop that the engine is timed against must do the same work."""

from __future__ import annotations

import pytest
import torch

from peftbench.benchmarks.overhead import Match, contestants
from tests.networks import CLASSES, classifier


def test_engine_and_bare_loop_end_with_the_same_weights() -> None:
    match = Match(classifier(dtype=torch.float32), 32, batch=8, steps=5, classes=CLASSES)
    ours, theirs = (dict(train().named_parameters()) for train in contestants(match).values())
    for name, before in match.model.named_parameters():
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(ours[name], before), name


def test_a_loop_that_diverges_is_no_measure() -> None:
    model = classifier(dtype=torch.float32)
    with torch.no_grad():
        model.head.linear.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="diverged"):
        contestants(Match(model, 32, batch=8, steps=1, classes=CLASSES))["bare"]()
