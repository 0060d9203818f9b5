"""fit() and predict(): the training loop, its schedule, its choice of steps, and its resumption.

Everything random in a step is drawn from (seed, step), so a run that goes on from a checkpoint repeats no number and
skips none: it ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench import sparse
from peftbench.augmentation import Augment
from peftbench.contract import Logits
from peftbench.errors import DivergedError
from peftbench.pixels import order
from peftbench.plan import Callback
from peftbench.recipe import Recipe
from peftbench.registry import registry

REPORT = 50  # steps between two looks at the loss; on a GPU each look waits for the card
SAVE = 200  # steps between two checkpoints, at most
EVALUATION_BATCH = 64


@runtime_checkable
class Inputs(Protocol):
    """Images or stored features by position."""

    def __len__(self) -> int: ...

    def batch(self, index: NDArray[np.int64]) -> Tensor:
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
    """Where a run stands; with the learner's and the optimiser's tensors it is the whole checkpoint."""

    step: int = 0
    loss_sum: float = 0.0  # since the last evaluation
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Chosen] = field(default_factory=dict)  # rule -> step
    kept: dict[str, Tensor] = field(default_factory=dict)  # the learner's tensors at the recipe's choice


Watch = Callable[[Progress], None]
Save = Callable[[Progress, Mapping[str, Tensor], Mapping[str, Tensor]], None]  # progress, learner, optimiser


def fit(  # noqa: PLR0913 - what a run is made of
    learner: Learner,
    task: Task,
    recipe: Recipe,
    seed: int,
    autocast: torch.dtype | None = None,
    begun: tuple[Progress, Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
    save: Save | None = None,
    watch: Watch | None = None,
) -> Progress:
    """Train to the recipe's last step, from `begun` if given; the learner ends with the last step's tensors.

    Raises DivergedError within REPORT steps of a loss that is not finite.
    """
    optimiser = make_optimiser(learner.model, recipe)
    progress = _go_on(learner, optimiser, begun)
    loss_of = make_loss(recipe, task)
    evaluations = evaluation_steps(recipe)
    for until in stops(recipe, progress.step):
        started = time.perf_counter()
        for total, step in _train(learner, optimiser, task, recipe, seed, (progress.step, until), loss_of, autocast):
            progress.step, progress.loss_sum = step, progress.loss_sum + total
            _refuse_divergence(total, step, recipe)
            if watch:
                watch(progress)
        progress.train_seconds += time.perf_counter() - started
        if until in evaluations:
            _evaluate(learner, task, recipe, progress, evaluations, autocast)
        if save:
            save(progress, learner.tensors, optimiser_tensors(optimiser))
    return progress


def _train(  # noqa: PLR0913 - likewise
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    task: Task,
    recipe: Recipe,
    seed: int,
    span: tuple[int, int],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    autocast: torch.dtype | None,
) -> Iterator[tuple[float, int]]:
    """Steps span[0] to span[1] - 1; yields the summed loss of up to REPORT steps and the number of steps done."""
    model, callback = learner.model.train(), learner.callback
    device, total, seen = task.labels.device, None, 0
    for step, index in enumerate(order(len(task.train), recipe.batch, seed, *span), start=span[0]):
        torch.manual_seed(1_000_003 * seed + step)  # dropout and the like: the same after a resume
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe)
        inputs = task.train.batch(index)
        inputs = task.augment(inputs, seed, step) if task.augment else inputs
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = model(inputs)
        loss = loss_of(logits, task.labels[torch.as_tensor(index, device=device)])
        penalty = callback.penalty() if callback else None
        optimiser.zero_grad(set_to_none=True)
        (loss if penalty is None else loss + penalty).backward()
        optimiser.step()
        if callback:
            callback.after_step(step, recipe.steps)
        total, seen = loss.detach().double() + (0 if total is None else total), seen + 1
        if seen == REPORT or step == span[1] - 1:
            yield total.item(), step + 1
            total, seen = None, 0


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
    scores = {name: float(macro_f1(logits[name], labels)) for name, (_, labels) in task.parts.items()}
    since = max((e for e in evaluations if e < progress.step), default=0)
    row = {
        "step": progress.step,
        "lr": learning_rate(progress.step - 1, recipe),
        "train_loss": progress.loss_sum / (progress.step - since),
    }
    if "val" in scores:
        row |= {"val_macro_f1": scores["val"], "val_loss": _loss(logits["val"], task.parts["val"][1])}
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
def forward(model: nn.Module, inputs: Inputs, autocast: torch.dtype | None = None) -> Tensor:
    """Whatever `model` gives for every input (n, ...), on its device."""
    was = model.training
    model.eval()
    device = next(model.parameters()).device.type
    with torch.autocast(device, autocast, enabled=autocast is not None):
        places = np.array_split(np.arange(len(inputs)), max(1, math.ceil(len(inputs) / EVALUATION_BATCH)))
        made = [model(inputs.batch(index)) for index in places]
    model.train(was)
    return torch.cat(made)


# --- the recipe, carried out -----------------------------------------------------------------------------------------


def learning_rate(step: int, recipe: Recipe) -> float:
    """Of step 0..steps-1: a linear rise, then half a cosine to zero."""
    rise = round(recipe.warmup * recipe.steps)
    if step < rise:
        return recipe.lr * (step + 1) / rise
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / (recipe.steps - rise)))


def evaluation_steps(recipe: Recipe) -> list[int]:
    """After which steps to evaluate: evenly spaced, the last one included."""
    return sorted({max(1, round(recipe.steps * i / recipe.evaluations)) for i in range(1, recipe.evaluations + 1)})


def stops(recipe: Recipe, done: int) -> list[int]:
    """Where the loop pauses to evaluate or to save, behind step `done`."""
    return sorted(s for s in {*evaluation_steps(recipe), *range(SAVE, recipe.steps, SAVE)} if s > done)


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Over what requires a gradient, and nothing else; matrices decay, vectors do not."""
    free: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                packed = isinstance(module, (sparse.Packed, sparse.SparseLinear)) and leaf == "values"
                free[bool(module.decays) if packed else sparse.decays(leaf, parameter)].append(parameter)
    groups = [{"params": free[True], "weight_decay": recipe.weight_decay}, {"params": free[False], "weight_decay": 0.0}]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)


def make_loss(recipe: Recipe, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean cross-entropy of logits (B, classes) and labels (B,), or of each label of labels (B, labels) by itself.

    `balanced` weighs each class, and the presence of each label, by its rarity in train.
    """
    balanced = recipe.class_weights != "none"
    if task.labels.dim() == 2:  # noqa: PLR2004 - one column a label
        present = task.labels.sum(0).float()
        rarity = (len(task.labels) - present) / present.clamp_min(1) if balanced else None
        return lambda logits, labels: F.binary_cross_entropy_with_logits(
            logits, labels.to(logits.dtype), pos_weight=rarity
        )
    counts = torch.bincount(task.labels, minlength=task.classes).float()
    weight = counts.sum() / (task.classes * counts.clamp_min(1)) if balanced else None
    return lambda logits, labels: F.cross_entropy(logits, labels, weight=weight)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its state as flat names `<parameter number>/<key>`."""
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {
        f"{i}/{key}": value for i, values in state.items() for key, value in values.items() if isinstance(value, Tensor)
    }


def _go_on(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    begun: tuple[Progress, Mapping[str, Tensor], Mapping[str, Tensor]] | None,
) -> Progress:
    if begun is None:
        return Progress()
    progress, tensors, momenta = begun
    learner.load(tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in momenta.items():
        number, _, key = name.partition("/")
        state.setdefault(int(number), {})[key] = tensor.clone()
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    return progress


def _refuse_divergence(total: float, step: int, recipe: Recipe) -> None:
    if not math.isfinite(total):
        message = (
            f"The loss was no longer a number by step {step} at learning rate {recipe.lr:g}; a smaller one may do."
        )
        raise DivergedError(message)


def _loss(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Unweighted, whatever training weighs."""
    found, truth = torch.from_numpy(logits), torch.from_numpy(labels)
    one_each = truth.dim() == 1
    return (F.cross_entropy(found, truth) if one_each else _each_label(found, truth)).item()


def _each_label(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
