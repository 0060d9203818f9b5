"""The linear probe fitted by L-BFGS: against scikit-learn, in closed form, and as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from peftbench.core.recipe import Recipe
from peftbench.errors import RequestError
from peftbench.inference.model import open_model
from peftbench.methods.linear import GRID, Linear, minimize
from peftbench.models.head import Head
from peftbench.training.job import run
from peftbench.training.optimizer import make_loss
from tests.studies import draw, jobs, places, small

DRAW = torch.Generator().manual_seed(0)
FEATURES, LABELS = torch.randn(60, 5, generator=DRAW), torch.randint(3, (60,), generator=DRAW)


def test_it_finds_the_minimum_that_scikit_learn_finds() -> None:
    """Its C weighs the summed loss, l2 here the mean: C = 1 / (n l2)."""
    for l2 in (1.0, 0.01, 1 / 60):
        head = Head(5, 3, "plain", 1.0, 0)
        loss = minimize(head.linear, FEATURES.double(), LABELS, F.cross_entropy, l2)
        peer = LogisticRegression(C=1 / (60 * l2), tol=1e-10, max_iter=10_000).fit(
            FEATURES.double().numpy(), LABELS.numpy()
        )
        np.testing.assert_allclose(head.linear.weight.detach(), peer.coef_, atol=1e-5)
        probability = head(FEATURES).softmax(1).detach()
        np.testing.assert_allclose(probability, peer.predict_proba(FEATURES.double().numpy()), atol=1e-5)
        assert loss == pytest.approx(F.nll_loss(probability.log(), LABELS).item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["plain", "l2", "batchnorm"])
@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(class_weights="balanced", label_smoothing=0.1)], ids=["plain", "balanced"]
)
def test_the_gradient_vanishes_under_every_head_and_loss(kind: str, recipe: Recipe) -> None:
    head, loss = Head(5, 3, kind, 4.0, 0), make_loss(recipe, LABELS, 3)
    ((fitted, facts),) = Linear(solver="lbfgs", l2=0.1).fits(FEATURES, LABELS, head, loss, choose=True)
    assert fitted is head
    total = loss(head.eval()(FEATURES), LABELS)
    assert total.item() == pytest.approx(facts["train_loss"], abs=1e-5)
    (total + 0.05 * head.linear.weight.square().sum()).backward()
    assert head.linear.weight.grad is not None
    assert head.linear.weight.grad.abs().max() < 1e-5


def test_a_batchnorm_head_standardizes_by_all_training_features() -> None:
    head = Head(5, 3, "batchnorm", 1.0, 0)
    normalized = head.fit_norm(FEATURES)
    torch.testing.assert_close(normalized.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalized.std(0), torch.ones(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(head(FEATURES), head.linear(normalized))


def test_penalties_fall_and_the_loss_with_them() -> None:
    head = Head(5, 3, "plain", 1.0, 0)
    facts = [dict(f) for _, f in Linear(solver="lbfgs").fits(FEATURES, LABELS, head, F.cross_entropy, choose=True)]
    assert [one["l2"] for one in facts] == [*GRID, 1 / 60]
    losses = [one["train_loss"] for one in facts[:-1]]
    assert losses == sorted(losses, reverse=True)


def test_without_validation_the_penalty_is_scikit_learns_default() -> None:
    head = Head(5, 3, "plain", 1.0, 0)
    ((_, facts),) = Linear(solver="lbfgs").fits(FEATURES, LABELS, head, F.cross_entropy, choose=False)
    assert facts["l2"] == 1 / 60


def test_a_job_needs_no_learning_rate_and_leaves_a_delta(tmp_path: Path) -> None:
    study = small(draw(tmp_path / "images", 24), methods=("linear[solver=lbfgs]", "linear"), tune=2)
    where = places(tmp_path)
    fitted, stepped = jobs(study, where)
    record = run(fitted, where)
    assert record is not None
    assert record.status == "done", record.reason
    assert not record.has_learning_rate
    assert record.costs is not None
    assert record.costs.images_per_second is None
    assert record.counts is not None
    assert record.counts.head == 3 * 193
    curve = (where.store / "jobs" / fitted.id / "curve.csv").read_text().splitlines()
    assert curve[0].split(",")[:3] == ["step", "l2", "train_loss"]
    assert len(curve) == 1 + len(GRID) + 1
    assert record.choices["validation"].val["macro_f1"] == max(float(line.split(",")[3]) for line in curve[1:])
    model = open_model(where.store / "jobs" / fitted.id, where)
    assert model.classes == ["dots", "rows", "stripes"]
    assert fitted.id != stepped.id


def test_the_penalty_must_be_above_0() -> None:
    fields: dict[str, Any] = {"l2": 0.0}
    with pytest.raises(RequestError, match="linear: l2 must be above 0"):
        Linear(**fields)
