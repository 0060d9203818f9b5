"""The training loop: steps, evaluations, the choice of a step, checkpoints.

Everything random in a step is drawn from (seed, step), so a run that is resumed from a checkpoint ends with the same
bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from peftbench.core.contract import Logits
from peftbench.core.recipe import Recipe
from peftbench.core.registry import registry
from peftbench.data.augmentation import Augment
from peftbench.data.batches import batch_order
from peftbench.errors import DivergedError, JobError
from peftbench.models.plan import Callback
from peftbench.profiling.clock import Clock
from peftbench.training.optimizer import (
    evaluation_steps,
    learning_rate,
    load_optimizer,
    make_loss,
    make_optimizer,
    optimizer_tensors,
    pauses,
    set_learning_rate,
    unweighted_loss,
)
from peftbench.training.step import Captured, Step

REPORT_EVERY = 50  # steps; reading the loss from a GPU waits for it
EVALUATION_BATCH = 64
SMOOTHED = 3  # evaluations whose mean the rule `validation_smoothed` scores
LARGEST_LOSS = 100.0  # mean, in nats; that of an untrained head is the logarithm of the number of classes


@runtime_checkable
class Inputs(Protocol):
    """Images or stored features by position."""

    def __len__(self) -> int: ...

    @property
    def resident(self) -> bool:
        """Whether they are on the device; `batch` then takes an index on the device, too."""
        ...

    def batch(self, index: NDArray[np.int64] | Tensor) -> Tensor:
        """Return the network's input for the images at `index`."""
        ...


@dataclass(frozen=True)
class Learner:
    """A model from inputs to logits, and every tensor in it that training may change."""

    model: nn.Module
    tensors: Mapping[str, Tensor]
    callback: Callback | None = None
    lr_multipliers: Mapping[Tensor, float] = field(default_factory=dict)  # of the recipe's learning rate; else 1
    ways: Mapping[str, str] = field(default_factory=dict)  # how sparse layers compute gradients; kept on resume

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the tensors."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state back into the tensors."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[name])


@dataclass(frozen=True)
class Task:
    """Training inputs and labels, and the parts to evaluate."""

    train: Inputs
    labels: Tensor  # of train (n,) or (n, labels), on the device
    parts: Mapping[str, tuple[Inputs, NDArray[np.int64]]]  # "val", "test" -> inputs and labels
    classes: int
    augment: Augment | None = None  # applied to training batches


@dataclass
class Chosen:
    """The step that a selection rule chose so far."""

    step: int
    score: float
    logits: dict[str, Logits]  # part -> (n, classes)


@dataclass
class Progress:
    """How far training is; together with the learner's and the optimizer's tensors, the whole checkpoint."""

    step: int = 0
    pieces: int = 1  # that a batch is split into when memory is short
    seconds: float = 0.0  # that the job took up to this checkpoint, interruptions left out
    cpu_seconds: float = 0.0  # `seconds` as CPU time
    loss_sum: float = 0.0  # since the last evaluation
    train_seconds: float = 0.0
    train_cpu_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Chosen] = field(default_factory=dict)  # rule -> step
    kept: dict[str, Tensor] = field(default_factory=dict)  # the learner's tensors at the step of the recipe's rule
    ways: dict[str, str] = field(default_factory=dict)  # layer -> how the gradient of its single weights is computed

    @property
    def best(self) -> float | None:
        """The macro F1 on validation of the step that is best so far, 0..1."""
        return self.chosen["validation"].score if "validation" in self.chosen else None

    def rate(self, batch: int) -> float:
        """Return the images per second in training."""
        return self.step * batch / self.train_seconds if self.train_seconds else 0.0


Watch = Callable[[Progress], None]
Save = Callable[[Progress, Mapping[str, Tensor], Mapping[str, Tensor]], None]  # progress, learner, optimizer
CheckpointContents = tuple[
    Progress, Mapping[str, Tensor], Mapping[str, Tensor]
]  # the arguments of Save, read from a checkpoint


@dataclass(frozen=True)
class RunCallbacks:
    """Callbacks of a run: show progress, save checkpoints, ask to stop."""

    watch: Watch = lambda _progress: None
    save: Save = lambda _progress, _learner, _optimizer: None
    stop: Callable[[], bool] = lambda: False


def fit(  # noqa: PLR0913 - what a run is made of
    learner: Learner,
    task: Task,
    recipe: Recipe,
    seed: int,
    autocast: torch.dtype | None = None,
    begun: CheckpointContents | None = None,
    callbacks: RunCallbacks | None = None,
    pieces: int = 1,
) -> Progress:
    """Train to the recipe's last step, from the checkpoint `begun` if given; the learner ends at the last step.

    Batches go through the network in `pieces` pieces whose gradients are summed. Raises DivergedError for logits that
    are not finite, and within REPORT_EVERY steps of a loss that is not finite or above LARGEST_LOSS; KeyboardInterrupt,
    after a checkpoint, when `callbacks` asks to stop.
    """
    callbacks = callbacks or RunCallbacks()
    optimizer = make_optimizer(learner.model, recipe, learner.lr_multipliers)
    progress = _resume(learner, optimizer, begun, pieces)
    loss_of = make_loss(recipe, task.labels, task.classes)
    step = Step(learner.model, optimizer, loss_of, autocast, recipe.clip, progress.pieces, learner.callback)
    if recipe.graph and learner.callback:
        raise JobError("--graph: this method computes outside its training step; run it without --graph.")
    train_step = Captured(step) if recipe.graph else step
    evaluations = evaluation_steps(recipe)

    def save() -> None:
        callbacks.save(progress, learner.tensors, optimizer_tensors(optimizer))

    for until in pauses(recipe, progress.step):
        clock, span = Clock(), (progress.step, until)
        for total, done in _train(learner, optimizer, train_step, task, recipe, seed, span, callbacks):
            _check_loss(total / (done - progress.step), done, recipe)
            progress.step, progress.loss_sum = done, progress.loss_sum + total
            passed = clock.lap()
            progress.train_seconds += passed.wall
            progress.train_cpu_seconds += passed.cpu
            callbacks.watch(progress)
        if progress.step == until and until in evaluations:
            _evaluate(learner, task, recipe, progress, evaluations, autocast)
        save()
        if callbacks.stop():
            raise KeyboardInterrupt
    return progress


def _train(  # noqa: PLR0913 - what a run is made of
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    train_step: Callable[[Tensor, Tensor], Tensor],
    task: Task,
    recipe: Recipe,
    seed: int,
    span: tuple[int, int],
    callbacks: RunCallbacks,
) -> Iterator[tuple[float, int]]:
    """Take the steps of `span`; yield the summed loss of up to REPORT_EVERY steps and the number of steps done."""
    first, until = span
    total, seen = None, 0
    learner.model.train()
    batches = np.stack(list(batch_order(len(task.train), recipe.batch, seed, first, until)))
    on_device = torch.from_numpy(batches).to(task.labels.device)  # once: a copy in each step would wait for the GPU
    for step, index, place in zip(range(first, until), batches, on_device, strict=True):
        torch.manual_seed(1_000_003 * seed + step)  # for dropout: the same after a resume
        set_learning_rate(optimizer, learning_rate(step, recipe))
        inputs = task.train.batch(place if task.train.resident else index)
        inputs = task.augment(inputs, seed, step) if task.augment else inputs
        loss = train_step(inputs, task.labels[place])
        if learner.callback:
            learner.callback.after_step(step, recipe.steps)
        total, seen = loss + (0 if total is None else total), seen + 1
        stopping = callbacks.stop()
        if seen == REPORT_EVERY or step == until - 1 or stopping:
            yield float(total), step + 1
            total, seen = None, 0
        if stopping:
            return


def _evaluate(
    learner: Learner,
    task: Task,
    recipe: Recipe,
    progress: Progress,
    evaluations: list[int],
    autocast: torch.dtype | None,
) -> None:
    """Evaluate the learner after a step of training."""
    since = max((e for e in evaluations if e < progress.step), default=0)
    rate, loss = learning_rate(progress.step - 1, recipe), progress.loss_sum / (progress.step - since)
    evaluate(learner, task, recipe, progress, {"step": progress.step, "lr": rate, "train_loss": loss}, autocast)
    progress.loss_sum = 0.0


def evaluate(
    learner: Learner,
    task: Task,
    recipe: Recipe,
    progress: Progress,
    row: dict[str, float],
    autocast: torch.dtype | None = None,
) -> None:
    """Predict every part, add `row` with its scores to the curve, and let each selection rule choose this step or not.

    Raises DivergedError for logits that are not finite.
    """
    started, macro_f1 = time.perf_counter(), registry("metrics").get("macro_f1")
    logits = {name: predict(learner.model, inputs, autocast) for name, (inputs, _) in task.parts.items()}
    if not all(np.isfinite(part).all() for part in logits.values()):
        raise DivergedError(f"Non-finite logits at step {progress.step} {_advice(recipe)}.")
    scores = {name: float(macro_f1(logits[name], labels)) for name, (_, labels) in task.parts.items()}
    if "val" in scores:
        row |= {"val_macro_f1": scores["val"], "val_loss": unweighted_loss(logits["val"], task.parts["val"][1])}
    progress.curve.append(row)
    for rule, score in _rule_scores(recipe, progress.curve, scores).items():
        before = progress.chosen.get(rule)
        if score is not None and (before is None or rule == "last" or score > before.score):  # ties to the earlier step
            progress.chosen[rule] = Chosen(progress.step, score, logits)
            if rule == effective_rule(recipe, scores):
                progress.kept = learner.state()
    progress.evaluation_seconds += time.perf_counter() - started


def _rule_scores(
    recipe: Recipe, curve: Sequence[Mapping[str, float]], scores: Mapping[str, float]
) -> dict[str, float | None]:
    """Return the score of the last evaluation under three rules and the recipe's own; None where it has none."""
    rules = {"validation": scores.get("val"), "last": math.inf, "oracle": scores.get("test")}
    if "val" in scores and recipe.selection == "validation_loss":
        rules[recipe.selection] = -curve[-1]["val_loss"]
    if "val" in scores and recipe.selection == "validation_smoothed":
        rules[recipe.selection] = fmean(row["val_macro_f1"] for row in curve[-SMOOTHED:])
    return rules


def effective_rule(recipe: Recipe, parts: Container[str]) -> str:
    """Return the recipe's selection rule, or `last` where there is no validation part."""
    return recipe.selection if "val" in parts else "last"


def predict(model: nn.Module, inputs: Inputs, autocast: torch.dtype | None = None) -> Logits:
    """Return logits (n, classes) in float32, in the order of the inputs, computed in evaluation mode."""
    return forward(model, inputs, autocast).float().cpu().numpy()


@torch.inference_mode()
def forward(model: nn.Module, inputs: Inputs, autocast: torch.dtype | None = None) -> Shaped[Tensor, "n ..."]:
    """Return what `model` computes in evaluation mode for every input (n, ...), on its device."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device.type
    with torch.autocast(device, autocast, enabled=autocast is not None):
        batches = np.array_split(np.arange(len(inputs)), max(1, math.ceil(len(inputs) / EVALUATION_BATCH)))
        outputs = [model(inputs.batch(index)) for index in batches]
    model.train(was_training)
    return torch.cat(outputs)


def _resume(
    learner: Learner, optimizer: torch.optim.Optimizer, begun: CheckpointContents | None, pieces: int
) -> Progress:
    if begun is None:
        return Progress(pieces=pieces, ways=dict(learner.ways))
    progress, tensors, momenta = begun
    progress.ways = dict(learner.ways)
    learner.load(tensors)
    load_optimizer(optimizer, momenta)
    return progress


def _check_loss(loss: float, step: int, recipe: Recipe) -> None:
    """Raise DivergedError for a loss that is not finite or too large."""
    if not loss < LARGEST_LOSS:  # true for nan, too
        problem = f"Loss of {loss:.3g}" if math.isfinite(loss) else "Non-finite loss"
        raise DivergedError(f"{problem} by step {step} {_advice(recipe)}.")


def _advice(recipe: Recipe) -> str:
    return f"at learning rate {recipe.lr:g}; try a smaller --lr"
