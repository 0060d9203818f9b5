"""A method on one tiny network: planned, carried out and trained the way `run.py` does it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.recipe import Recipe
from peftbench.data.batches import Features
from peftbench.models.gradient_probe import GradientProbe
from peftbench.models.head import Classifier
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Tuned
from peftbench.testing.networks import CLASSES, batch, batches, classifier
from peftbench.training.checkpoint import Checkpoint
from peftbench.training.loop import Learner, Outside, Progress, Task, fit

SEED = 3
RATES = {"sgd": 0.05, "adamw": 0.01}
STEPS = 4  # with a checkpoint behind half of them
Begun = tuple[Progress, dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Carried:
    """A classifier whose backbone carries the plan."""

    model: Classifier
    tuned: Tuned
    pretrained: dict[str, Tensor]  # the live tensors of the backbone before that, by name

    @property
    def head(self) -> dict[str, Tensor]:
        """The head's live tensors under the names that a learner gives them."""
        return {f"head/{name}": tensor for name, tensor in self.model.head.state_dict(keep_vars=True).items()}

    def trainable(self) -> dict[str, nn.Parameter]:
        """What requires a gradient in the backbone."""
        return {name: p for name, p in self.model.vit.named_parameters() if p.requires_grad}

    def frozen(self) -> dict[str, Tensor]:
        """Every live tensor once that training must leave alone: what no name of `Tuned.tensors` holds."""
        seen = {id(tensor) for tensor in self.tuned.tensors.values()}
        left = {}
        for name, tensor in (*self.pretrained.items(), *_tensors(self.model.vit)):
            if id(tensor) not in seen:
                left[name] = tensor
            seen.add(id(tensor))
        return left

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """What one step of the engine minimises."""
        penalty = self.tuned.callback.penalty() if self.tuned.callback else None
        loss = F.cross_entropy(self.model(images), labels)
        return loss if penalty is None else loss + penalty


@dataclass(frozen=True)
class Trained:
    """The same after some steps, and the frozen tensors as they were before them."""

    carried: Carried
    before: dict[str, Tensor]
    halfway: Halfway

    @property
    def state(self) -> dict[str, Tensor]:
        """Everything that training may change, head included."""
        return self.carried.tuned.state() | _copied(self.carried.head)


class Scene:
    """Everything that the rules of one method on one network share, made when first asked for."""

    def __init__(self, method: Method, style: str) -> None:
        self.method, self.style = method, style
        self.images, self.labels = batch()

    def model(self) -> Classifier:
        """A new classifier with the pretrained weights."""
        return classifier(self.style)

    @cached_property
    def blank(self) -> nn.Module:
        """The backbone on the meta device, for counting."""
        return self.model().vit.to("meta")

    def planned(self, model: Classifier, disturbance: int = 0) -> Plan:
        """What the method decides for this classifier, whatever state the generators are in."""
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)  # noqa: NPY002 - those who use it must be found out
        random.seed(disturbance)
        return self.method.plan(model.vit, GradientProbe(model, batches, F.cross_entropy))

    @cached_property
    def plan(self) -> Plan:
        """Decided once; rules that decide again use `planned`."""
        return self.planned(self.model())

    @cached_property
    def pretrained(self) -> Tensor:
        """The features (B, D) of the network before anything was done to it."""
        with torch.no_grad():
            features: Tensor = self.model().vit.eval()(self.images)
        return features

    def carried(self, plan: Plan | None = None) -> Carried:
        """A new classifier that carries the plan, in evaluation mode."""
        return self.carry_out(self.model(), plan)

    def carry_out(self, model: Classifier, plan: Plan | None = None) -> Carried:
        """Let this classifier carry the plan."""
        before = dict(_tensors(model.vit))
        torch.manual_seed(SEED)
        tuned = (plan or self.plan).carry_out(model.vit)
        return Carried(model.eval(), tuned, before)

    def stirred(self, times: float = 1) -> Carried:
        """The same with noise, so many times, on all that trains, as if training had taken it somewhere."""
        carried, draw = self.carried(), torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in carried.trainable().values():
                parameter.add_(0.1 * times * torch.randn(parameter.shape, generator=draw))
        return carried

    @lru_cache  # noqa: B019 - a scene is gone with its check
    def trained(self, optimizer: str) -> Trained:
        """After a short training."""
        return self.train(self.carried(), optimizer)

    def train(self, carried: Carried, optimizer: str, begun: Begun | None = None) -> Trained:
        """Train with momentum and weight decay, from a checkpoint if given."""
        before = _copied(carried.frozen())
        learner = Learner(carried.model, {**carried.tuned.tensors, **carried.head}, carried.tuned.callback)
        task = Task(Features(self.images), self.labels, {}, CLASSES)
        halfway = Halfway()
        fit(learner, task, recipe(optimizer), SEED, begun=begun, outside=Outside(save=halfway))
        return Trained(carried, before, halfway)


@dataclass
class Halfway:
    """What the checkpoint behind half of the steps holds; on disk only when it is asked for."""

    held: Begun | None = None

    def __call__(self, progress: Progress, learner: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """As the engine calls it."""
        if progress.step == STEPS // 2:
            self.held = deepcopy(progress), _copied(learner), _copied(optimizer)

    def read(self) -> Begun | None:
        """Written to disk and read back."""
        with TemporaryDirectory() as folder:
            checkpoint = Checkpoint(Path(folder))
            if self.held:
                checkpoint.write(*self.held)
            return checkpoint.read()


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _tensors(vit: nn.Module) -> list[tuple[str, Tensor]]:
    return [*vit.named_parameters(), *vit.named_buffers()]


def recipe(optimizer: str) -> Recipe:
    """Few steps, large ones, and much decay, so that whatever leaks is seen."""
    return Recipe(
        "check",
        optimizer="sgd" if optimizer == "sgd" else "adamw",
        lr=RATES[optimizer],
        weight_decay=0.1,
        batch=4,
        steps=STEPS,
        warmup=0.0,
        evaluations=2,
        precision="fp32",
    )


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names whose tensors differ in a bit, or that only one of them has."""
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    ]


def listed(names: list[str]) -> str:
    """The first of many names."""
    return f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def relative(found: Tensor, wanted: Tensor) -> float:
    """The distance of two tensors as a share of the wanted one's length."""
    one, other = found.detach().double(), wanted.detach().double()
    return float((one - other).norm() / other.norm())
