"""The training loop against a plain one, and each of its guarantees on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.contract import Logits
from peftbench.core.recipe import Recipe
from peftbench.data.batches import FeatureBatches, batch_order
from peftbench.errors import DivergedError
from peftbench.models.head import Classifier, Head
from peftbench.training import loop, optimizer
from peftbench.training.loop import Learner, Progress, RunCallbacks, Task, fit
from peftbench.training.optimizer import make_optimizer

Kind: TypeAlias = Literal["plain", "l2", "batchnorm"]
CheckpointContents: TypeAlias = tuple[Progress, dict[str, Tensor], dict[str, Tensor]]

CLASSES, WIDTH, SEED = 3, 6, 3
RECIPE = Recipe("tiny", lr=0.05, batch=4, steps=12, evaluations=4, precision="fp32", weight_decay=0.1)


def features(images: int, seed: int) -> tuple[FeatureBatches, NDArray[np.int64]]:
    """Points around one center a class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=images)
    points = rng.normal(size=(images, WIDTH)) + 2 * np.eye(CLASSES, WIDTH)[labels]
    return FeatureBatches(torch.from_numpy(points).float()), labels


def task(*parts: str) -> Task:
    train, labels = features(18, 0)
    return Task(train, torch.from_numpy(labels), {name: features(15, 1 + i) for i, name in enumerate(parts)}, CLASSES)


def learner(model: nn.Module) -> Learner:
    return Learner(model, model.state_dict(keep_vars=True))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, CLASSES))


def plain_loop(model: nn.Module, on: Task, recipe: Recipe) -> list[float]:
    """Train by `recipe` in a plain loop; return the loss of each step."""
    matrices, vectors = ([p for p in model.parameters() if (p.dim() == 2) is two] for two in (True, False))
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, lr=1.0, momentum=recipe.momentum)
        if recipe.optimizer == "sgd"
        else torch.optim.AdamW(groups, lr=1.0)
    )
    losses = []
    for step, index in enumerate(batch_order(len(on.train), recipe.batch, SEED, 0, recipe.steps)):
        torch.manual_seed(1_000_003 * SEED + step)
        rise = round(recipe.warmup * recipe.steps)
        down = 0.5 * (1 + math.cos(math.pi * (step - rise) / (recipe.steps - rise)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * ((step + 1) / rise if step < rise else down)
        loss = F.cross_entropy(model(on.train.batch(index)), on.labels[torch.from_numpy(index)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fit_is_the_plain_loop(optimizer: Literal["adamw", "sgd"]) -> None:
    recipe, on = replace(RECIPE, optimizer=optimizer), task("val")
    own, plain = network(), network()
    progress = fit(learner(own), on, recipe, SEED)
    losses = plain_loop(plain, on, recipe)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], tensor, rtol=0, atol=1e-6)
    means = [sum(losses[start : start + 3]) / 3 for start in range(0, 12, 3)]
    np.testing.assert_allclose([row["train_loss"] for row in progress.curve], means, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "evaluations", "after"),
    [(12, 4, [3, 6, 9, 12]), (10, 3, [3, 7, 10]), (3, 20, [1, 2, 3]), (1, 1, [1]), (40_000, 2, [20_000, 40_000])],
)
def test_evaluations_are_evenly_spaced_and_hold_the_last_step(steps: int, evaluations: int, after: list[int]) -> None:
    assert optimizer.evaluation_steps(replace(RECIPE, steps=steps, evaluations=evaluations)) == after


def test_the_rate_rises_linearly_then_falls_as_half_a_cosine() -> None:
    recipe = replace(RECIPE, lr=1.0, steps=20, warmup=0.2)
    rates = [optimizer.learning_rate(step, recipe) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.5)
    assert 0 < rates[19] < 0.01


def test_without_warm_up_the_paper_s_rate_starts_at_the_top() -> None:
    recipe = replace(RECIPE, warmup=0.0, steps=40_000)
    assert optimizer.learning_rate(0, recipe) == recipe.lr
    assert optimizer.learning_rate(20_000, recipe) == pytest.approx(recipe.lr / 2)


def scripted(monkeypatch: pytest.MonkeyPatch, scores: dict[str, list[float]]) -> None:
    """Let the macro F1 of each part follow a script, by the part's size."""

    class Metrics:
        def get(self, _: str) -> Callable[[Logits, NDArray[np.int64]], float]:
            return lambda logits, _: scores[{14: "val", 15: "test"}[len(logits)]].pop(0)

    monkeypatch.setattr(loop, "registry", lambda _: Metrics())


def two_parts() -> Task:
    return replace(task(), parts={"val": features(14, 1), "test": features(15, 2)})


def test_the_step_that_is_best_on_validation_is_kept_ties_to_the_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {"val": [0.1, 0.6, 0.6, 0.3], "test": [0.9, 0.2, 0.3, 0.9]})
    progress = fit(learner(network()), two_parts(), RECIPE, SEED)
    assert {rule: chosen.step for rule, chosen in progress.chosen.items()} == {
        "validation": 6,
        "last": 12,
        "oracle": 3,
    }


def test_every_rule_keeps_the_logits_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {"val": [0.1, 0.6, 0.5, 0.3], "test": [0.9, 0.2, 0.3, 0.8]})
    model, on = network(), two_parts()
    progress = fit(learner(model), on, RECIPE, SEED)
    np.testing.assert_array_equal(progress.chosen["last"].logits["test"], loop.predict(model, on.parts["test"][0]))
    model.load_state_dict(progress.kept)
    np.testing.assert_array_equal(progress.chosen["validation"].logits["val"], loop.predict(model, on.parts["val"][0]))
    assert np.abs(progress.chosen["oracle"].logits["test"] - progress.chosen["last"].logits["test"]).max() > 0


@pytest.mark.parametrize(("selection", "step"), [("validation", 3), ("last", 12)])
def test_the_recipe_s_rule_decides_what_is_kept(
    selection: Literal["validation", "last"], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {"val": [0.9, 0.6, 0.5, 0.3], "test": [0.1] * 4})
    seen: dict[int, dict[str, Tensor]] = {}
    mine = learner(network())
    progress = fit(
        mine,
        two_parts(),
        replace(RECIPE, selection=selection),
        SEED,
        callbacks=RunCallbacks(save=lambda progress, *_: seen.update({progress.step: mine.state()})),
    )
    assert all(torch.equal(progress.kept[name], tensor) for name, tensor in seen[step].items())


def test_the_smoothed_rule_takes_the_last_of_the_best_three_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of up to three scores: .5, .7, .6, .6; the single best score comes second, the second mean is the best."""
    scripted(monkeypatch, {"val": [0.5, 0.9, 0.4, 0.5], "test": [0.1] * 4})
    progress = fit(learner(network()), two_parts(), replace(RECIPE, selection="validation_smoothed"), SEED)
    assert progress.chosen["validation_smoothed"].step == 6
    scripted(monkeypatch, {"val": [0.1, 0.9, 0.1, 0.8], "test": [0.1] * 4})
    progress = fit(learner(network()), two_parts(), replace(RECIPE, selection="validation_smoothed"), SEED)
    assert progress.chosen["validation"].step == 6
    assert progress.chosen["validation_smoothed"].step == 12


def test_the_rule_of_the_loss_takes_the_lowest_validation_loss() -> None:
    recipe = replace(RECIPE, selection="validation_loss", lr=2.0)  # so high that the loss rises and falls
    progress = fit(learner(network()), two_parts(), recipe, SEED)
    losses = {int(row["step"]): row["val_loss"] for row in progress.curve}
    assert progress.chosen["validation_loss"].step == min(losses, key=lambda step: losses[step])
    assert "validation_loss" not in fit(learner(network()), task(), recipe, SEED).chosen


def test_without_a_validation_part_the_last_step_is_kept() -> None:
    model = network()
    progress = fit(learner(model), task(), RECIPE, SEED)
    assert set(progress.chosen) == {"last"}
    assert all(torch.equal(progress.kept[name], tensor) for name, tensor in model.state_dict().items())
    assert "val_loss" not in progress.curve[0]


class Unseen(FeatureBatches):
    """A part that must not be read."""

    def batch(self, index: object) -> Tensor:  # noqa: ARG002
        raise AssertionError("the test part was looked at")


def test_training_looks_at_no_part_that_it_is_not_given() -> None:
    on = task("val")  # what a trial gets
    assert "oracle" not in fit(learner(network()), on, RECIPE, SEED).chosen
    guarded = replace(on, parts={**on.parts, "test": (Unseen(torch.zeros(3, WIDTH)), np.zeros(3, np.int64))})
    with pytest.raises(AssertionError, match="looked at"):
        fit(learner(network()), guarded, RECIPE, SEED)


class Breaks(nn.Module):
    """Gives nan from its n-th training step on."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.linear, self.left = nn.Linear(WIDTH, CLASSES), step

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training
        out: Tensor = self.linear(x)
        return out if self.left >= 0 else out * math.nan


@pytest.mark.parametrize("step", [0, 30, 70])
def test_divergence_is_noticed_within_50_steps(step: int) -> None:
    model = Breaks(step)
    with pytest.raises(DivergedError, match=r"Non-finite loss by step \d+ at learning rate 0.05"):
        fit(learner(model), task("val"), replace(RECIPE, steps=1000, evaluations=1), SEED)
    assert -model.left <= 50


def test_the_loss_weighs_classes_by_their_rarity() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    on = replace(task(), labels=labels)
    logits = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(0))
    own = optimizer.make_loss(replace(RECIPE, class_weights="balanced"), on.labels, on.classes)(logits, labels)
    each = F.cross_entropy(logits, labels, reduction="none")
    weight = torch.tensor([8 / 12, 8 / 6, 8 / 6])[labels]  # images / (classes x images of the class)
    torch.testing.assert_close(own, (weight * each).sum() / weight.sum())
    plain = optimizer.make_loss(RECIPE, on.labels, on.classes)(logits, labels)
    torch.testing.assert_close(plain, each.mean())


class Frozen(nn.Module):
    """A substitute for a backbone in which nothing trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 10), nn.GELU(), nn.Linear(10, WIDTH)).requires_grad_(
            requires_grad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


@pytest.mark.parametrize("kind", ["plain", "l2", "batchnorm"])
def test_a_head_on_stored_features_learns_what_it_learns_on_the_network(kind: Kind) -> None:
    on, recipe = task("val", "test"), replace(RECIPE, head=kind)
    through = Classifier(Frozen(), Head(WIDTH, CLASSES, kind, 1.0, SEED))
    stored = Classifier(Frozen(), Head(WIDTH, CLASSES, kind, 1.0, SEED))
    parts = {
        name: (FeatureBatches(loop.forward(stored.vit, inputs).clone()), labels)
        for name, (inputs, labels) in on.parts.items()
    }
    train = FeatureBatches(loop.forward(stored.vit, on.train).clone())
    slow = fit(Learner(through, through.head.state_dict(keep_vars=True)), on, recipe, SEED)
    fast = fit(learner(stored.head), replace(on, train=train, parts=parts), recipe, SEED)
    for name, tensor in slow.kept.items():
        torch.testing.assert_close(fast.kept[name], tensor, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fast.chosen["last"].logits["test"], slow.chosen["last"].logits["test"], atol=1e-6)


def test_the_batchnorm_head_keeps_its_running_statistics() -> None:
    head = Head(WIDTH, CLASSES, "batchnorm", 1.0, SEED)
    progress = fit(learner(head), task("val"), replace(RECIPE, head="batchnorm", selection="last"), SEED)
    assert progress.kept["norm.num_batches_tracked"] == 12
    fresh = Head(WIDTH, CLASSES, "batchnorm", 1.0, SEED)
    fresh.load_state_dict(progress.kept)
    part = task("val").parts["val"][0]
    np.testing.assert_array_equal(loop.predict(fresh, part), progress.chosen["last"].logits["val"])


def saving(kept: list[CheckpointContents]) -> loop.Save:
    """A way to save that keeps copies in a list."""

    def save(progress: Progress, tensors: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        at = replace(progress, chosen=dict(progress.chosen), curve=list(progress.curve))
        mine, theirs = ({name: tensor.clone() for name, tensor in named.items()} for named in (tensors, optimizer))
        kept.append((at, mine, theirs))

    return save


@pytest.mark.parametrize(("optimizer", "momentum"), [("adamw", 0.9), ("sgd", 0.9), ("sgd", 0.0)])
@pytest.mark.parametrize("head", ["plain", "batchnorm"])
def test_going_on_from_any_checkpoint_repeats_every_bit(
    optimizer: Literal["adamw", "sgd"], momentum: float, head: Kind
) -> None:
    recipe, on = replace(RECIPE, optimizer=optimizer, momentum=momentum, head=head), task("val", "test")
    kept: list[CheckpointContents] = []

    def model() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.2), Head(WIDTH, CLASSES, head, 1.0, SEED))

    whole = fit(learner(model()), on, recipe, SEED, callbacks=RunCallbacks(save=saving(kept)))
    assert [progress.step for progress, *_ in kept] == [3, 6, 9, 12]
    for begun in kept:
        again = fit(learner(model()), on, recipe, SEED, begun=begun)
        assert again.curve == whole.curve
        assert all(torch.equal(again.kept[name], tensor) for name, tensor in whole.kept.items())
        np.testing.assert_array_equal(again.chosen["last"].logits["test"], whole.chosen["last"].logits["test"])


def test_the_loss_of_a_long_stretch_does_not_depend_on_where_a_checkpoint_fell() -> None:
    recipe, on = replace(RECIPE, steps=450, evaluations=1), task("val")  # saved after 200, 400, 450
    kept: list[CheckpointContents] = []
    whole = fit(learner(network()), on, recipe, SEED, callbacks=RunCallbacks(save=saving(kept)))
    assert [progress.step for progress, *_ in kept] == [200, 400, 450]
    assert fit(learner(network()), on, recipe, SEED, begun=kept[1]).curve == whole.curve


def test_the_head_learns_at_its_own_rate_where_the_recipe_s_is_lower() -> None:
    model = Classifier(nn.Linear(WIDTH, WIDTH), Head(WIDTH, CLASSES, "plain", 1.0, SEED))
    slow, fast = (replace(RECIPE, lr=lr, head_lr=0.02) for lr in (0.001, 0.05))
    times = {
        id(p): group["lr_multiplier"] for group in make_optimizer(model, slow).param_groups for p in group["params"]
    }
    assert {times[id(p)] for p in model.head.parameters()} == {20.0}
    assert {times[id(p)] for p in model.vit.parameters()} == {1.0}
    assert {group["lr_multiplier"] for group in make_optimizer(model, fast).param_groups} == {1.0}
    assert {group["lr_multiplier"] for group in make_optimizer(model.head, slow).param_groups} == {
        1.0
    }  # a linear probe


def test_tensors_learn_at_the_multiples_of_the_rate_that_the_plan_gives_them() -> None:
    """As layer-wise decay does; under plain SGD a step is the rate times its multiplier times the gradient."""
    recipe = replace(RECIPE, optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup=0.0, steps=1, evaluations=1)
    model = network()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    whole = deepcopy(model)
    fit(learner(whole), task("val"), recipe, SEED)
    decayed: dict[Tensor, float] = {model.get_parameter("0.weight"): 0.5, model.get_parameter("0.bias"): 0.0}
    fit(replace(learner(model), lr_multipliers=decayed), task("val"), recipe, SEED)
    for name, factor in {"0.weight": 0.5, "0.bias": 0.0, "3.weight": 1.0, "3.bias": 1.0}.items():
        step = whole.get_parameter(name) - before[name]
        torch.testing.assert_close(model.get_parameter(name) - before[name], factor * step, rtol=1e-4, atol=1e-7)
        assert step.norm() > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("kind", ["single", "multi_label"])
def test_the_range_of_a_loss_is_where_an_optimizer_ends(
    smoothing: float, weights: Literal["none", "balanced"], kind: str
) -> None:
    """For one prediction for all images, and for one per image."""
    rng, recipe = np.random.default_rng(0), replace(RECIPE, label_smoothing=smoothing, class_weights=weights)
    flags = (rng.random((40, 3)) < (0.5, 0.2, 0.05)).astype(np.int64)
    labels = flags if kind == "multi_label" else rng.choice(3, 40, p=(0.8, 0.15, 0.05))
    truth = torch.from_numpy(labels)
    loss_of = optimizer.make_loss(recipe, truth, 3)

    def least(images: int) -> float:
        shown = torch.zeros(images, 3, requires_grad=True)
        optimizer = torch.optim.LBFGS([shown], max_iter=300, tolerance_change=0, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimizer.zero_grad()
            found = loss_of(shown.expand(40, 3), truth)
            found.backward()
            return found.item()

        optimizer.step(loss)
        return loss()

    assert optimizer.loss_range(recipe, labels, 3) == pytest.approx((least(40), least(1)), abs=2e-3)


def test_weights_and_smoothing_together_are_torchs_loss() -> None:
    """It is computed without torch's function, which waits for the GPU in every step."""
    draw = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(9, CLASSES, generator=draw, dtype=torch.float64), torch.arange(9) % 2
    weight = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)
    own = optimizer.smoothed_cross_entropy(logits, truth, weight=weight, smoothing=0.2)
    torch.testing.assert_close(own, F.cross_entropy(logits, truth, weight=weight, label_smoothing=0.2))
