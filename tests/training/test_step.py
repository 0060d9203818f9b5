"""A captured step computes what the eager step does. Here the eager step takes the place of a GPU's graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peftbench.core.recipe import Recipe
from peftbench.data.batches import FeatureBatches
from peftbench.errors import JobError
from peftbench.models.plan import Callback
from peftbench.training import step as steps
from peftbench.training.loop import Learner, Task, fit
from peftbench.training.optimizer import make_optimizer, set_learning_rate
from peftbench.training.step import WARM_UP, Captured

IMAGES, WIDTH, CLASSES = 12, 6, 3
RECIPE = Recipe("tiny", lr=0.05, head_lr=0.1, batch=4, steps=8, evaluations=2, precision="fp32", clip=1.0)
GRAPH = replace(RECIPE, graph=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a substitute for a GPU that repeats captured work on the captured tensors, and a log of its calls."""
    diary: list[str] = []

    def aside(work: Callable[[], Tensor], *, last: bool) -> Tensor:
        diary.append("last" if last else "aside")
        return work()

    def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        diary.append("capture")
        place = torch.zeros((), dtype=torch.float64)  # a graph's result always lies in the same place

        def replay() -> Tensor:
            diary.append("replay")
            return place.copy_(work())

        return replay

    monkeypatch.setattr(steps, "on_side_stream", aside)
    monkeypatch.setattr(steps, "capture", capture)
    return diary


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, CLASSES))


def task() -> Task:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    inputs = FeatureBatches(torch.randn(IMAGES, WIDTH, generator=draw))
    return Task(inputs, labels, {"val": (inputs, labels.numpy())}, CLASSES)


def trained(recipe: Recipe, parts: int = 1) -> dict[str, Tensor]:
    model = network()
    fit(Learner(model, model.state_dict(keep_vars=True)), task(), recipe, 3, pieces=parts)
    return dict(model.state_dict())


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_captured_training_ends_where_plain_training_does(
    gpu: list[str], optimizer: Literal["adamw", "sgd"], parts: int
) -> None:
    plain, captured = (trained(replace(recipe, optimizer=optimizer), parts) for recipe in (RECIPE, GRAPH))
    for name, tensor in plain.items():
        torch.testing.assert_close(captured[name], tensor, rtol=1e-5, atol=1e-6)  # the rate is a float32 there
        assert not torch.equal(tensor, network().state_dict()[name])
    assert gpu == ["aside"] * (WARM_UP - 1) + ["last", "capture"] + ["replay"] * (RECIPE.steps - WARM_UP)


@pytest.mark.usefixtures("gpu")
def test_every_batch_is_trained_on_once_and_each_loss_stays_what_it_was() -> None:
    seen: list[float] = []

    def work(inputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(float(inputs.sum() + labels.sum()))
        return inputs.sum().double()

    step = Captured(work)
    losses = [step(torch.full((2, 3), float(i)), torch.tensor([i, i])) for i in range(WARM_UP + 4)]
    assert seen == [6.0 * i + 2 * i for i in range(WARM_UP + 4)]
    assert [float(loss) for loss in losses] == [6.0 * i for i in range(WARM_UP + 4)]


@pytest.mark.usefixtures("gpu")
def test_replays_compute_with_the_tensors_that_were_captured() -> None:
    places: list[tuple[int, int]] = []

    def work(inputs: Tensor, labels: Tensor) -> Tensor:
        places.append((inputs.data_ptr(), labels.data_ptr()))
        return inputs.sum().double()

    step = Captured(work)
    batches = [(torch.zeros(2, 3), torch.zeros(2)) for _ in range(WARM_UP + 4)]
    for batch in batches:
        step(*batch)
    assert len(set(places[WARM_UP:])) == 1
    assert places[-1] not in [(x.data_ptr(), y.data_ptr()) for x, y in batches]  # which may change or go


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_captured_steps_rates_are_tensors_of_their_own(optimizer: Literal["adamw", "sgd"]) -> None:
    made = make_optimizer(network(), Recipe("tiny", optimizer=optimizer, graph=True))
    rates = [group["lr"] for group in made.param_groups]
    set_learning_rate(made, 0.25)
    assert len(rates) == len({rate.data_ptr() for rate in rates})
    assert [float(group["lr"]) for group in made.param_groups] == [0.25] * len(rates)
    assert all(now["lr"] is rate for now, rate in zip(made.param_groups, rates, strict=True))


def test_a_method_that_acts_beside_its_steps_is_refused() -> None:
    model = network()
    learner = Learner(model, model.state_dict(keep_vars=True), Callback())
    with pytest.raises(JobError, match="--graph: this method computes outside"):
        fit(learner, task(), GRAPH, 0)
    assert all(torch.equal(t, network().state_dict()[n]) for n, t in model.state_dict().items())


def test_images_in_memory_are_asked_for_by_places_in_memory() -> None:
    """On a GPU, an index that comes from the CPU at each step would wait for it."""
    asked: list[type] = []

    class Asked(FeatureBatches):
        def batch(self, index: Any) -> Tensor:
            asked.append(type(index))
            return super().batch(index)

    model, on = network(), task()
    inputs = Asked(torch.zeros(IMAGES, WIDTH))
    fit(Learner(model, model.state_dict(keep_vars=True)), Task(inputs, on.labels, {}, CLASSES), RECIPE, 0)
    inputs.resident = False
    fit(Learner(model, model.state_dict(keep_vars=True)), Task(inputs, on.labels, {}, CLASSES), RECIPE, 0)
    assert asked == [Tensor] * RECIPE.steps + [np.ndarray] * RECIPE.steps
