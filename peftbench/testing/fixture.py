"""The fixture that the rules of a method share: the method planned, carried out and trained on one tiny network."""

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
from peftbench.data.batches import FeatureBatches
from peftbench.models.gradient_probe import GradientProbe
from peftbench.models.head import Classifier
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Tuned
from peftbench.results.store import JobFolder
from peftbench.testing.networks import CLASSES, batch, batches, classifier
from peftbench.training.checkpoint import Checkpoint
from peftbench.training.loop import CheckpointContents, Progress, RunCallbacks, Task, fit
from peftbench.training.trainee import Trainee, carry_out

SEED = 3
RATES = {"sgd": 0.05, "adamw": 0.01}
STEPS = 4  # with a checkpoint after half of them


@dataclass(frozen=True)
class Carried:
    """A classifier whose backbone carries the plan."""

    trainee: Trainee
    pretrained: dict[str, Tensor]  # the live tensors of the backbone before that, by name

    @property
    def model(self) -> Classifier:
        """The classifier."""
        return self.trainee.model

    @property
    def tuned(self) -> Tuned:
        """The backbone and its trainable tensors."""
        return self.trainee.tuned

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what requires a gradient in the backbone."""
        return {name: p for name, p in self.model.vit.named_parameters() if p.requires_grad}

    def holds(self, tensor: Tensor) -> bool:
        """Return whether `Tuned.tensors` holds a tensor, as one or in pieces that share its memory."""
        memory = tensor.untyped_storage().data_ptr()
        pieces = [t for t in self.tuned.tensors.values() if t.untyped_storage().data_ptr() == memory]
        return bool(pieces) and sum(piece.numel() for piece in pieces) == tensor.numel()

    def frozen(self) -> dict[str, Tensor]:
        """Return every live tensor that training must not change, once: all that `Tuned.tensors` does not hold."""
        seen = {id(tensor) for tensor in self.tuned.tensors.values()}
        left = {}
        for name, tensor in (*self.pretrained.items(), *_tensors(self.model.vit)):
            if id(tensor) not in seen and not self.holds(tensor):
                left[name] = tensor
            seen.add(id(tensor))
        return left

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss that a training step minimizes."""
        penalty = self.tuned.callback.penalty() if self.tuned.callback else None
        loss = F.cross_entropy(self.model(images), labels)
        return loss if penalty is None else loss + penalty


@dataclass(frozen=True)
class Trained:
    """The same after STEPS steps, and the frozen tensors as they were before."""

    carried: Carried
    before: dict[str, Tensor]
    halfway: Halfway

    @property
    def state(self) -> dict[str, Tensor]:
        """Everything that training may change, head included."""
        return self.carried.tuned.state() | _copied(self.carried.trainee.head)


class MethodFixture:
    """Everything that the rules of one method on one network share, made when it is first needed."""

    def __init__(self, method: Method, style: str) -> None:
        self.method, self.style = method, style
        self.images, self.labels = batch()
        self.task = Task(FeatureBatches(self.images), self.labels, {}, CLASSES)

    def model(self) -> Classifier:
        """Return a new classifier with the pretrained weights."""
        return classifier(self.style)

    @cached_property
    def blank(self) -> nn.Module:
        """The backbone on the meta device, for counting."""
        return self.model().vit.to("meta")

    def planned(self, model: Classifier, disturbance: int = 0) -> Plan:
        """Return the method's plan for this classifier, with the global random generators seeded by `disturbance`."""
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)  # noqa: NPY002 - a method that uses it must be found
        random.seed(disturbance)
        return self.method.plan(model.vit, GradientProbe(model, batches, F.cross_entropy))

    @cached_property
    def plan(self) -> Plan:
        """The plan, made once; rules that need another one call `planned`."""
        return self.planned(self.model())

    @cached_property
    def pretrained(self) -> Tensor:
        """The features (B, D) of the pretrained network."""
        with torch.no_grad():
            features: Tensor = self.model().vit.eval()(self.images)
        return features

    def carried(self, plan: Plan | None = None) -> Carried:
        """Return a new classifier that carries the plan, in evaluation mode."""
        return self.carry_out(self.model(), plan)

    def carry_out(self, model: Classifier, plan: Plan | None = None) -> Carried:
        """Carry out the plan on this classifier."""
        before = dict(_tensors(model.vit))
        torch.manual_seed(SEED)
        trainee = carry_out(model, plan or self.plan, self.task)
        model.eval()
        return Carried(trainee, before)

    def perturbed(self, times: float = 1) -> Carried:
        """Return the same with noise, multiplied by `times`, on all that trains, as if it had been trained."""
        carried, draw = self.carried(), torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in carried.trainable().values():
                parameter.add_(0.1 * times * torch.randn(parameter.shape, generator=draw))
        return carried

    @lru_cache  # noqa: B019 - the fixture ends with its check
    def trained(self, optimizer: str) -> Trained:
        """Return the result of a short training."""
        return self.train(self.carried(), optimizer)

    def train(self, carried: Carried, optimizer: str, begun: CheckpointContents | None = None) -> Trained:
        """Train with momentum and weight decay, from a checkpoint if given."""
        before = _copied(carried.frozen())
        halfway = Halfway()
        fit(
            carried.trainee.learner,
            self.task,
            recipe(optimizer),
            SEED,
            begun=begun,
            callbacks=RunCallbacks(save=halfway),
        )
        return Trained(carried, before, halfway)


@dataclass
class Halfway:
    """The checkpoint after half of the steps, written to disk only when it is read."""

    held: CheckpointContents | None = None

    def __call__(self, progress: Progress, learner: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Keep a copy, as `RunCallbacks.save`."""
        if progress.step == STEPS // 2:
            self.held = deepcopy(progress), _copied(learner), _copied(optimizer)

    def read(self) -> CheckpointContents | None:
        """Write it to disk and read it back."""
        with TemporaryDirectory() as folder:
            checkpoint = Checkpoint(JobFolder(Path(folder)))
            if self.held:
                checkpoint.write(*self.held)
            return checkpoint.read()


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _tensors(vit: nn.Module) -> list[tuple[str, Tensor]]:
    return [*vit.named_parameters(), *vit.named_buffers()]


def recipe(optimizer: str) -> Recipe:
    """Return a recipe of few large steps with strong weight decay, so that any unwanted change is seen."""
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
    """Return the names whose tensors differ in any bit, or that are in one mapping only."""
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    ]


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two tensors over the norm of the expected one."""
    one, other = found.detach().double(), expected.detach().double()
    return float((one - other).norm() / other.norm())
