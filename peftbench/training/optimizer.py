"""The recipe, carried out: learning rate, evaluations, optimizer and loss."""

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

SAVE = 200  # steps between two checkpoints, at most


def learning_rate(step: int, recipe: Recipe) -> float:
    """Of step 0..steps-1: a linear rise, then half a cosine or a line down, or no change."""
    rise = round(recipe.warmup * recipe.steps)
    if step < rise:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * (step + 1) / rise
    if recipe.schedule == "constant":
        return recipe.lr
    done = (step - rise) / (recipe.steps - rise)
    left = 0.5 * (1 + math.cos(math.pi * done)) if recipe.schedule == "cosine" else 1 - done
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * left


def evaluation_steps(recipe: Recipe) -> list[int]:
    """After which steps to evaluate: evenly spaced, the last one included."""
    return sorted({max(1, round(recipe.steps * i / recipe.evaluations)) for i in range(1, recipe.evaluations + 1)})


def stops(recipe: Recipe, done: int) -> list[int]:
    """Where the loop pauses to evaluate or to save, behind step `done`."""
    return sorted(s for s in {*evaluation_steps(recipe), *range(SAVE, recipe.steps, SAVE)} if s > done)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Over what requires a gradient, and nothing else; matrices decay, vectors do not.

    Each group says how many times the recipe's learning rate it learns at. The head learns at `recipe.head_lr` or
    more, unless it learns alone, as in a linear probe.
    """
    faster = max(1.0, recipe.head_lr / recipe.lr)
    found = _sorted(model, faster)
    alone = not any(some for (times, _), some in found.items() if times == 1.0)
    groups = [
        {"params": some, "weight_decay": recipe.weight_decay if decays else 0.0, "times": 1.0 if alone else times}
        for (times, decays), some in found.items()
    ]
    if recipe.graph:  # a captured step reads its rate on the card
        device = next(model.parameters()).device
        groups = [{**group, "lr": torch.tensor(recipe.lr, device=device)} for group in groups]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=recipe.graph or None)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True, capturable=recipe.graph)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The recipe's learning rate of a step; each group learns at so many times it as it says."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["times"] * rate)
        else:
            group["lr"] = group["times"] * rate


def _sorted(model: nn.Module, faster: float) -> dict[tuple[float, bool], list[nn.Parameter]]:
    """What trains, by how many times the learning rate it gets and whether it decays."""
    free: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    heads = {module for head in model.modules() if isinstance(head, Head) for module in head.modules()}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                packed = isinstance(module, (sparse.Packed, sparse.SparseLinear)) and leaf == "values"
                decays = bool(module.decays) if packed else sparse.decays(leaf, parameter)
                free.setdefault((faster if module in heads else 1.0, decays), []).append(parameter)
    return free


def make_loss(recipe: Recipe, labels: Tensor, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean cross-entropy of logits (B, classes) and labels (B,), or of each label of labels (B, labels) by itself.

    `labels` are those of train, (n,) or (n, labels): `balanced` weighs each class, and the presence of each label, by
    its rarity there.
    """
    balanced = recipe.class_weights != "none"
    if labels.dim() == 2:  # noqa: PLR2004 - one column a label
        present = labels.sum(0).float()
        rarity = (len(labels) - present) / present.clamp_min(1) if balanced else None
        return lambda logits, truth: F.binary_cross_entropy_with_logits(
            logits, truth.to(logits.dtype), pos_weight=rarity
        )
    counts = torch.bincount(labels, minlength=classes).float()
    weight = counts.sum() / (classes * counts.clamp_min(1)) if balanced else None
    if weight is not None and recipe.label_smoothing and labels.is_cuda:
        return partial(_weighted, weight=weight, smoothing=recipe.label_smoothing)
    return lambda logits, truth: F.cross_entropy(logits, truth, weight=weight, label_smoothing=recipe.label_smoothing)


def loss_range(recipe: Recipe, labels: Labels, classes: int) -> tuple[float, float]:
    """The least mean of `make_loss` on these labels, of anything, and of one prediction for all images."""
    share = (np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(0)) / len(labels)
    rare, balanced = share.clip(1 / len(labels)), recipe.class_weights != "none"
    if labels.ndim > 1:
        present = share * ((1 - share) / rare if balanced else 1)
        return 0.0, float(_surprise(np.stack([present, 1 - share], 1)).mean())
    weight = 1 / (classes * rare) if balanced else np.ones(classes)
    smoothing = recipe.label_smoothing
    each = (1 - smoothing) * np.diag(weight) + smoothing / classes * weight  # what a class weighs, by the true one
    total = share @ weight
    return float(share @ _surprise(each) / total), float(_surprise(share @ each) / total)


def _surprise(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of -w log(w / sum of w) over the last axis: the least weighted surprise that one prediction can have."""
    shares = weights / weights.sum(-1, keepdims=True)
    return np.asarray(-(weights * np.log(shares, where=shares > 0, out=np.zeros_like(shares))).sum(-1))


def _weighted(logits: Tensor, truth: Tensor, *, weight: Tensor, smoothing: float) -> Tensor:
    """`F.cross_entropy` with weights and smoothing, which there waits for the card in every step."""
    logs = F.log_softmax(logits, dim=1)
    everywhere = -(logs * weight).sum() / weight[truth].sum() / len(weight)
    return (1 - smoothing) * F.nll_loss(logs, truth, weight=weight) + smoothing * everywhere


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its state as flat names `<parameter number>/<key>`."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{i}/{key}": value for i, values in state.items() for key, value in values.items() if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take over a state with the names of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        state.setdefault(int(number), {})[key] = tensor.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def plain_loss(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Unweighted, whatever training weighs: of logits (n, classes) and labels (n,) or (n, labels)."""
    found, truth = torch.from_numpy(logits), torch.from_numpy(labels)
    if truth.dim() == 1:
        return F.cross_entropy(found, truth).item()
    return F.binary_cross_entropy_with_logits(found, truth.to(found.dtype)).item()
