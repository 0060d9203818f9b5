"""What a recipe means for training: learning rate, evaluation steps, optimizer and loss."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

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
    1. The head learns at `recipe.head_lr` if that is higher, unless it is trained alone, as in a linear probe. `pieces`
    are the parameters in the order of checkpoints, where every tensor with single entries that train has a number.
    """
    groups: list[dict[str, Any]] = []
    for (multiplier, decays), pieces in _sort_parameters(model, recipe, lr_multipliers or {}).items():
        positions = {p: position for position, p in enumerate(dict.fromkeys(p for p, _ in pieces))}
        groups.append(
            {
                "params": list(positions),
                "weight_decay": recipe.weight_decay if decays else 0.0,
                "lr_multiplier": multiplier,
                "pieces": [(positions[parameter], span) for parameter, span in pieces],
            }
        )
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


Piece: TypeAlias = tuple[nn.Parameter, slice]  # a parameter, and which of its first dimension


def _sort_parameters(
    model: nn.Module, recipe: Recipe, lr_multipliers: Mapping[Tensor, float]
) -> dict[tuple[float, bool], list[Piece]]:
    """Return the trainable parameters by the multiplier of their learning rate and by whether they decay."""
    sorted_: dict[tuple[float, bool], list[Piece]] = {(1.0, True): [], (1.0, False): []}
    heads = {module for head in model.modules() if isinstance(head, Head) for module in head.modules()}
    packed: dict[nn.Module, tuple[slice, sparse.PackedValues]] = {
        site: (span, values)
        for values in model.modules()
        if isinstance(values, sparse.PackedValues)
        for site, span in values.spans().items()
    }
    trained = [(m, n, p) for m in model.modules() for n, p in _own(m) if p.requires_grad]
    head_only = not packed and all(module in heads for module, _, _ in trained)
    head_multiplier = 1.0 if head_only else max(1.0, recipe.head_lr / recipe.lr)
    for module in model.modules():
        for leaf, parameter in _own(module):
            if parameter.requires_grad:
                multiplier = head_multiplier if module in heads else lr_multipliers.get(parameter, 1.0)
                key = (multiplier, sparse.decays(leaf, parameter))
                sorted_.setdefault(key, []).append((parameter, slice(None)))
        if module in packed:
            span, values = packed[module]
            sorted_[1.0, values.decays].append((values.values, span))
    return sorted_


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of a module alone; those of single entries belong to the sites of the entries."""
    return [] if isinstance(module, sparse.PackedValues) else list(module.named_parameters(recurse=False))


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
    """Return the optimizer's state under flat names, `<piece number>/<key>`."""
    found = dict[str, Tensor]()
    for number, (parameter, span) in enumerate(_pieces(optimizer)):
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                found[f"{number}/{key}"] = value[span] if value.dim() else value
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load a state that `optimizer_tensors` returned."""
    state: dict[nn.Parameter, dict[str, list[tuple[int, Tensor]]]] = {}
    pieces = _pieces(optimizer)
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        parameter, span = pieces[int(number)]
        state.setdefault(parameter, {}).setdefault(key, []).append((span.start or 0, tensor))
    numbers = {parameter: number for number, parameter in enumerate(dict.fromkeys(p for p, _ in pieces))}
    joined = {numbers[p]: {key: _joined(parts) for key, parts in keys.items()} for p, keys in state.items()}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": joined})


def _pieces(optimizer: torch.optim.Optimizer) -> list[Piece]:
    """Return the pieces of all groups in their order."""
    return [(group["params"][position], span) for group in optimizer.param_groups for position, span in group["pieces"]]


def _joined(parts: list[tuple[int, Tensor]]) -> Tensor:
    """Return the state of a parameter from that of its pieces, each with its start."""
    tensors = [tensor for _, tensor in sorted(parts, key=operator.itemgetter(0))]
    return torch.cat(tensors) if tensors[0].dim() else tensors[0].clone()


def unweighted_loss(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Return the mean cross-entropy of logits (n, classes) and labels (n,) or (n, labels), without class weights."""
    found, truth = torch.from_numpy(logits), torch.from_numpy(labels)
    if truth.dim() == 1:
        return F.cross_entropy(found, truth).item()
    return F.binary_cross_entropy_with_logits(found, truth.to(found.dtype)).item()
