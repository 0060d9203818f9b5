"""fit() and predict(): the training loop, its schedule, its choice of steps, and its resumption.

Everything random in a step is drawn from (seed, step), so a run that goes on from a checkpoint repeats no number and
skips none: it ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
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
from peftbench.training.optimizer import (
    evaluation_steps,
    learning_rate,
    load_optimizer,
    make_loss,
    make_optimizer,
    optimizer_tensors,
    plain_loss,
    set_rate,
    stops,
)
from peftbench.training.step import Captured, Step

REPORT = 50  # steps between two looks at the loss; on a GPU each look waits for the card
EVALUATION_BATCH = 64
EXPLODED = 100.0  # a mean loss in nats; an untrained head's is the logarithm of the number of classes


@runtime_checkable
class Inputs(Protocol):
    """Images or stored features by position."""

    def __len__(self) -> int: ...

    @property
    def resident(self) -> bool:
        """Whether they lie on the device; then `batch` takes places that lie there, too."""
        ...

    def batch(self, index: NDArray[np.int64] | Tensor) -> Tensor:
        """The network's input for the images at `index`."""
        ...


@dataclass(frozen=True)
class Learner:
    """What trains: a model from inputs to logits, and every tensor in it that training may change."""

    model: nn.Module
    tensors: Mapping[str, Tensor]
    callback: Callback | None = None

    def state(self) -> dict[str, Tensor]:
        """A copy of them."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a copy back."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[name])


@dataclass(frozen=True)
class Task:
    """What it trains on. `parts` are those to be evaluated: a trial never sees test."""

    train: Inputs
    labels: Tensor  # of train (n,) or (n, labels), on the device
    parts: Mapping[str, tuple[Inputs, NDArray[np.int64]]]  # val, test -> inputs and labels
    classes: int
    augment: Augment | None = None  # what happens to training images


@dataclass
class Chosen:
    """A step that a selection rule kept."""

    step: int
    score: float
    logits: dict[str, Logits]  # part -> (n, classes)


@dataclass
class Progress:
    """Where a run stands; with the learner's and the optimizer's tensors it is the whole checkpoint."""

    step: int = 0
    parts: int = 1  # pieces that a batch is cut into, for want of memory
    seconds: float = 0.0  # that the job took before it was interrupted, up to the checkpoint
    loss_sum: float = 0.0  # since the last evaluation
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Chosen] = field(default_factory=dict)  # rule -> step
    kept: dict[str, Tensor] = field(default_factory=dict)  # the learner's tensors at the recipe's choice


Watch = Callable[[Progress], None]
Save = Callable[[Progress, Mapping[str, Tensor], Mapping[str, Tensor]], None]  # progress, learner, optimizer
Begun = tuple[Progress, Mapping[str, Tensor], Mapping[str, Tensor]]  # likewise, read back


@dataclass(frozen=True)
class Outside:
    """Those who watch a run, keep its checkpoints and may ask it to stop."""

    watch: Watch = lambda _progress: None
    save: Save = lambda _progress, _learner, _optimizer: None
    stop: Callable[[], bool] = lambda: False


def fit(  # noqa: PLR0913 - what a run is made of
    learner: Learner,
    task: Task,
    recipe: Recipe,
    seed: int,
    autocast: torch.dtype | None = None,
    begun: Begun | None = None,
    outside: Outside | None = None,
    parts: int = 1,
) -> Progress:
    """Train to the recipe's last step, from `begun` if given; the learner ends with the last step's tensors.

    Batches go through the network in `parts` pieces whose gradients add up. Raises DivergedError within REPORT steps
    of a loss that is not finite or explodes, and for logits that are not finite; KeyboardInterrupt, behind a
    checkpoint, when asked to stop.
    """
    outside = outside or Outside()
    optimizer = make_optimizer(learner.model, recipe)
    progress = _go_on(learner, optimizer, begun, parts)
    loss_of = make_loss(recipe, task.labels, task.classes)
    step = Step(learner.model, optimizer, loss_of, autocast, recipe.clip, progress.parts, learner.callback)
    if recipe.graph and learner.callback:
        raise JobError("--graph: a CUDA graph cannot hold what this method does beside its steps; leave --graph out.")
    do = Captured(step) if recipe.graph else step
    evaluations = evaluation_steps(recipe)

    def save() -> None:
        outside.save(progress, learner.tensors, optimizer_tensors(optimizer))

    for until in stops(recipe, progress.step):
        started = time.perf_counter()
        span = (progress.step, until)
        for total, done in _train(learner, optimizer, do, task, recipe, seed, span, outside):
            _refuse_divergence(total / (done - progress.step), done, recipe)
            progress.step, progress.loss_sum = done, progress.loss_sum + total
            started, before = time.perf_counter(), started
            progress.train_seconds += started - before
            outside.watch(progress)
        if progress.step == until and until in evaluations:
            _evaluate(learner, task, recipe, progress, evaluations, autocast)
        save()
        if outside.stop():
            raise KeyboardInterrupt
    return progress


def _train(  # noqa: PLR0913 - likewise
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    do: Callable[[Tensor, Tensor], Tensor],
    task: Task,
    recipe: Recipe,
    seed: int,
    span: tuple[int, int],
    outside: Outside,
) -> Iterator[tuple[float, int]]:
    """The steps of `span`; yields the summed loss of up to REPORT of them and the number of steps done."""
    first, until = span
    total, seen = None, 0
    learner.model.train()
    plan = np.stack(list(batch_order(len(task.train), recipe.batch, seed, first, until)))
    there = torch.from_numpy(plan).to(task.labels.device)  # at once: a copy for each step would wait for the card
    for step, index, place in zip(range(first, until), plan, there, strict=True):
        torch.manual_seed(1_000_003 * seed + step)  # dropout and the like: the same after a resume
        set_rate(optimizer, learning_rate(step, recipe))
        inputs = task.train.batch(place if task.train.resident else index)
        inputs = task.augment(inputs, seed, step) if task.augment else inputs
        loss = do(inputs, task.labels[place])
        if learner.callback:
            learner.callback.after_step(step, recipe.steps)
        total, seen = loss + (0 if total is None else total), seen + 1
        asked = outside.stop()
        if seen == REPORT or step == until - 1 or asked:
            yield float(total), step + 1
            total, seen = None, 0
        if asked:
            return


def _evaluate(
    learner: Learner,
    task: Task,
    recipe: Recipe,
    progress: Progress,
    evaluations: list[int],
    autocast: torch.dtype | None,
) -> None:
    """Predict every part, note the curve and let each selection rule keep this step or not."""
    started, macro_f1 = time.perf_counter(), registry("metrics").get("macro_f1")
    logits = {name: predict(learner.model, inputs, autocast) for name, (inputs, _) in task.parts.items()}
    if not all(np.isfinite(made).all() for made in logits.values()):
        raise DivergedError(f"What the network said was no number at step {progress.step} {_advice(recipe)}.")
    scores = {name: float(macro_f1(logits[name], labels)) for name, (_, labels) in task.parts.items()}
    since = max((e for e in evaluations if e < progress.step), default=0)
    row = {
        "step": progress.step,
        "lr": learning_rate(progress.step - 1, recipe),
        "train_loss": progress.loss_sum / (progress.step - since),
    }
    if "val" in scores:
        row |= {"val_macro_f1": scores["val"], "val_loss": plain_loss(logits["val"], task.parts["val"][1])}
    progress.curve.append(row)
    progress.loss_sum = 0.0
    rules = {"validation": scores.get("val"), "last": math.inf, "oracle": scores.get("test")}
    for rule, score in rules.items():
        before = progress.chosen.get(rule)
        if score is not None and (before is None or rule == "last" or score > before.score):  # ties to the earlier step
            progress.chosen[rule] = Chosen(progress.step, score, logits)
            if rule == followed(recipe, scores):
                progress.kept = learner.state()
    progress.evaluation_seconds += time.perf_counter() - started


def followed(recipe: Recipe, parts: Container[str]) -> str:
    """The recipe's selection rule, or `last` where there is no validation part to follow it on."""
    return recipe.selection if "val" in parts else "last"


def predict(model: nn.Module, inputs: Inputs, autocast: torch.dtype | None = None) -> Logits:
    """Logits (n, classes) float32, in the order of the inputs, in evaluation mode."""
    return forward(model, inputs, autocast).float().cpu().numpy()


@torch.inference_mode()
def forward(model: nn.Module, inputs: Inputs, autocast: torch.dtype | None = None) -> Shaped[Tensor, "n ..."]:
    """Whatever `model` gives for every input (n, ...), on its device."""
    was = model.training
    model.eval()
    device = next(model.parameters()).device.type
    with torch.autocast(device, autocast, enabled=autocast is not None):
        places = np.array_split(np.arange(len(inputs)), max(1, math.ceil(len(inputs) / EVALUATION_BATCH)))
        made = [model(inputs.batch(index)) for index in places]
    model.train(was)
    return torch.cat(made)


def _go_on(learner: Learner, optimizer: torch.optim.Optimizer, begun: Begun | None, parts: int) -> Progress:
    if begun is None:
        return Progress(parts=parts)
    progress, tensors, momenta = begun
    learner.load(tensors)
    load_optimizer(optimizer, momenta)
    return progress


def _refuse_divergence(loss: float, step: int, recipe: Recipe) -> None:
    if not loss < EXPLODED:  # nor is a loss that is no number
        what = f"grew to {loss:.3g}" if math.isfinite(loss) else "was no longer a number"
        raise DivergedError(f"The loss {what} by step {step} {_advice(recipe)}.")


def _advice(recipe: Recipe) -> str:
    return f"at learning rate {recipe.lr:g}; a smaller one may do"
