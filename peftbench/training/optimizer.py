"""What a recipe means for training: learning rate, evaluation steps, optimizer and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.contract import Labels, Logits
from peftbench.core.recipe import Recipe
from peftbench.models import sparse
from peftbench.models.head import Head

SAVE_EVERY = 200  # steps between two checkpoints, at most


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the rate at step 0..steps-1: a linear warm-up, then a cosine, a line down to `min_lr` or constant."""
    warmup = round(recipe.warmup * recipe.steps)
    if step < warmup:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.lr
    done = (step - warmup) / (recipe.steps - warmup)
    factor = 0.5 * (1 + math.cos(math.pi * done)) if recipe.schedule == "cosine" else 1 - done
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * factor


def evaluation_steps(recipe: Recipe) -> list[int]:
    """Return the numbers of steps after which to evaluate: evenly spaced, the last one included."""
    spaced = {max(1, round(recipe.steps * i / recipe.evaluations)) for i in range(1, recipe.evaluations + 1)}
    last = recipe.stop or recipe.steps
    return sorted({step for step in spaced if step < last} | {last})


def pauses(recipe: Recipe, done: int) -> list[int]:
    """Return the numbers of steps, above `done`, after which the loop evaluates or saves a checkpoint."""
    saves = range(SAVE_EVERY, recipe.stop or recipe.steps, SAVE_EVERY)
    return sorted(step for step in {*evaluation_steps(recipe), *saves} if step > done)


def make_optimizer(
    model: nn.Module, recipe: Recipe, lr_multipliers: Mapping[Tensor, float] | None = None
) -> torch.optim.Optimizer:
    """Return an optimizer of what requires a gradient; weight decay acts on matrices, not on vectors.

    Each group holds an `lr_multiplier` of the recipe's learning rate: that of its parameters in `lr_multipliers`, else
    1. The head learns at `recipe.head_lr` if that is higher, unless it is trained alone, as in a linear probe.
    """
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr_multiplier": multiplier,
        }
        for (multiplier, decays), parameters in _sort_parameters(model, recipe, lr_multipliers or {}).items()
    ]
    if recipe.graph:  # a captured step reads its rate from the GPU
        device = next(model.parameters()).device
        groups = [{**group, "lr": torch.tensor(recipe.lr, device=device)} for group in groups]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=recipe.graph or None)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True, capturable=recipe.graph)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's lr to the rate times the group's multiplier."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["lr_multiplier"] * rate)
        else:
            group["lr"] = group["lr_multiplier"] * rate


def _sort_parameters(
    model: nn.Module, recipe: Recipe, lr_multipliers: Mapping[Tensor, float]
) -> dict[tuple[float, bool], list[nn.Parameter]]:
    """Return the trainable parameters by the multiplier of their learning rate and by whether they decay."""
    sorted_: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    heads = {module for head in model.modules() if isinstance(head, Head) for module in head.modules()}
    trained = [(m, n, p) for m in model.modules() for n, p in m.named_parameters(recurse=False) if p.requires_grad]
    head_only = all(module in heads for module, _, _ in trained)
    head_multiplier = 1.0 if head_only else max(1.0, recipe.head_lr / recipe.lr)
    for module, leaf, parameter in trained:
        packed = isinstance(module, (sparse.Packed, sparse.SparseLayer)) and leaf == "values"
        decays = bool(module.decays) if packed else sparse.decays(leaf, parameter)
        multiplier = head_multiplier if module in heads else lr_multipliers.get(parameter, 1.0)
        sorted_.setdefault((multiplier, decays), []).append(parameter)
    return sorted_


def make_loss(recipe: Recipe, labels: Tensor, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the mean cross-entropy of logits (B, classes) and labels (B,), or binary of labels (B, labels).

    `labels` are those of train, (n,) or (n, labels); with `balanced` class weights, each class, or the presence of
    each label, is weighted by the inverse of its frequency there.
    """
    balanced = recipe.class_weights != "none"
    if labels.dim() == 2:  # noqa: PLR2004 - one column per label
        present = labels.sum(0).float()
        rarity = (len(labels) - present) / present.clamp_min(1) if balanced else None
        return lambda logits, truth: F.binary_cross_entropy_with_logits(
            logits, truth.to(logits.dtype), pos_weight=None if rarity is None else rarity.to(logits.dtype)
        )
    counts = torch.bincount(labels, minlength=classes).float()
    weight = counts.sum() / (classes * counts.clamp_min(1)) if balanced else None
    if weight is not None and recipe.label_smoothing and labels.is_cuda:
        return partial(smoothed_cross_entropy, weight=weight, smoothing=recipe.label_smoothing)
    return lambda logits, truth: F.cross_entropy(
        logits,
        truth,
        weight=None if weight is None else weight.to(logits.dtype),
        label_smoothing=recipe.label_smoothing,
    )


def loss_range(recipe: Recipe, labels: Labels, classes: int) -> tuple[float, float]:
    """Return the lowest mean of `make_loss` on these labels: of any predictions, and of one for all images."""
    share = (np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(0)) / len(labels)
    rare, balanced = share.clip(1 / len(labels)), recipe.class_weights != "none"
    if labels.ndim > 1:
        present = share * ((1 - share) / rare if balanced else 1)
        return 0.0, float(_min_cross_entropy(np.stack([present, 1 - share], 1)).mean())
    weight = 1 / (classes * rare) if balanced else np.ones(classes)
    smoothing = recipe.label_smoothing
    each = (1 - smoothing) * np.diag(weight) + smoothing / classes * weight  # what a class weighs, by the true one
    total = share @ weight
    return float(share @ _min_cross_entropy(each) / total), float(_min_cross_entropy(share @ each) / total)


def _min_cross_entropy(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of -w log(w / sum(w)) over the last axis: the lowest cross-entropy of one prediction."""
    shares = weights / weights.sum(-1, keepdims=True)
    return np.asarray(-(weights * np.log(shares, where=shares > 0, out=np.zeros_like(shares))).sum(-1))


def smoothed_cross_entropy(logits: Tensor, truth: Tensor, *, weight: Tensor, smoothing: float) -> Tensor:
    """Compute `F.cross_entropy` with class weights and smoothing, which in torch waits for the GPU in every step."""
    logs = F.log_softmax(logits, dim=1)
    everywhere = -(logs * weight).sum() / weight[truth].sum() / len(weight)
    return (1 - smoothing) * F.nll_loss(logs, truth, weight=weight) + smoothing * everywhere


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state under flat names, `<parameter number>/<key>`."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{i}/{key}": value for i, values in state.items() for key, value in values.items() if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load a state that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        state.setdefault(int(number), {})[key] = tensor.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def unweighted_loss(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Return the mean cross-entropy of logits (n, classes) and labels (n,) or (n, labels), without class weights."""
    found, truth = torch.from_numpy(logits), torch.from_numpy(labels)
    if truth.dim() == 1:
        return F.cross_entropy(found, truth).item()
    return F.binary_cross_entropy_with_logits(found, truth.to(found.dtype)).item()
