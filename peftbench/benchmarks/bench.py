"""`peftbench bench`: what the engine costs against the straightforward way, as ratios within one process.

Times are process CPU seconds of one thread, variants in turn, the median of the pairwise ratios. A time prints PASS or
FAIL and nothing more; equality and memory, which do not depend on the machine's mood, decide the exit code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.benchmarks import bench_data, overhead
from peftbench.benchmarks.gates import Gate, picks
from peftbench.core.recipe import Recipe
from peftbench.data.batches import Features
from peftbench.models import backbone
from peftbench.models.gradient_probe import GradientProbe
from peftbench.models.head import Classifier, Head
from peftbench.models.plan import Plan
from peftbench.profiling import counting, hardware
from peftbench.training.optimizer import make_optimizer

BATCH, CLASSES, SIDE = 32, 4, 64
RECIPE = Recipe("bench", optimizer="sgd", lr=0.05, weight_decay=0.01, batch=BATCH, steps=50, evaluations=1)


def run(rounds: int = 5) -> list[Gate]:
    """Every gate; about two minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            gate
            for part in (
                _exact,
                _memory,
                partial(_overhead, rounds),
                partial(_steps, rounds),
                _bf16,
                _head,
                _data,
                _importance,
            )
            for gate in part()
        ]
    finally:
        torch.set_num_threads(threads)


# --- what is compared ------------------------------------------------------------------------------------------------


def network() -> Classifier:
    """A ViT-Ti at 64 px, the same at each call."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=SIDE, patch_size=8, embed_dim=192, depth=12, num_heads=3, num_classes=0)
    return Classifier(vit, Head(192, CLASSES, "plain", 1.0, 0))


def batch(number: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    draw = torch.Generator().manual_seed(number)
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=draw), torch.randint(CLASSES, (BATCH,), generator=draw)


def stepper(
    plan: Plan, mask: Mapping[str, Tensor] | None = None, autocast: torch.dtype | None = None
) -> tuple[Classifier, Callable[[int], float]]:
    """A model after `plan`, and a function that does one training step.

    With `mask`, dense gradients are masked: the usual way.
    """
    model = network()
    plan.carry_out(model.vit)
    keep = {model.vit.get_parameter(n): _dense(model.vit.get_parameter(n), index) for n, index in (mask or {}).items()}
    if mask:
        head = model.head.get_parameter("linear.weight")
        keep[head] = torch.ones_like(head)  # decays as everywhere
    optimizer = make_optimizer(model, replace(RECIPE, weight_decay=0.0) if mask else RECIPE)

    def step(number: int) -> float:
        x, y = batch(number)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            logits = model(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        for parameter, chosen in keep.items():  # weight decay by hand: the optimizer's own would reach past the mask
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            decay = RECIPE.weight_decay if parameter.dim() == 2 or parameter.dim() == 4 else 0.0  # noqa: PLR2004
            grad.add_(parameter.detach(), alpha=decay).mul_(chosen)
        optimizer.step()
        return loss.item()

    return model, step


def _dense(tensor: Tensor, index: Tensor) -> Tensor:
    return torch.zeros(tensor.numel()).index_fill(0, index, 1.0).view_as(tensor)


def ratios(variants: Mapping[str, Callable[[], object]], base: str, rounds: int) -> dict[str, float]:
    """Median over rounds of each variant's CPU seconds over the base's; variants in turn, one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, work in variants.items():
            started = time.process_time()
            work()
            seconds[name].append(time.process_time() - started)
    return {
        name: median(s / b for s, b in zip(found[1:], seconds[base][1:], strict=True))
        for name, found in seconds.items()
    }


# --- the gates -------------------------------------------------------------------------------------------------------


def _exact() -> Iterator[Gate]:
    for name, clustered in (("random", False), ("clustered", True)):
        entries = picks(network().vit, 0.001, clustered)
        _, sparse = stepper(Plan(entries=entries))
        _, masked = stepper(Plan(tune=frozenset(entries)), entries)
        gap = max(abs(sparse(0) - masked(0)) for _ in range(10))
        yield Gate(f"losses of sparse against masked training, {name} picks: largest gap", gap, 1e-5, decides=True)


def _memory() -> Iterator[Gate]:
    for share, bound in ((0.0001, 0.80), (0.001, 0.80)):
        entries = picks(network().vit, share, clustered=False)
        ratio = counted(Plan(entries=entries)) / counted(
            Plan(tune=frozenset(n for n, _ in network().vit.named_parameters()))
        )
        yield Gate(f"counted memory of a sparse step over a full one, {share:.2%}", ratio, bound, decides=True)


def counted(plan: Plan) -> int:
    """Bytes that a training step holds: weights, what backward saved, gradients, optimizer state."""
    return counting.count(stepper(plan)[0], (BATCH, 3, SIDE, SIDE), RECIPE).memory.total


def _overhead(rounds: int) -> Iterator[Gate]:
    match = overhead.Match(network(), SIDE, BATCH, 4, CLASSES)
    found = ratios(overhead.contestants(match), "bare", rounds)
    yield Gate("the engine's loop over a bare one of the same steps", found["engine"], 1.03)


def _steps(rounds: int) -> Iterator[Gate]:
    names = [n for n, _ in network().vit.named_parameters()]
    tuned = {
        "full": names,
        "BitFit": [n for n in names if n.endswith("bias")],
        "LayerNorm": [n for n in names if "norm" in n],
        "attention": [n for n in names if ".attn." in n],
        "last block": [n for n in names if n.startswith(("blocks.11.", "norm."))],
        "head": [],
    }
    plans: dict[str, tuple[Plan, dict[str, Tensor] | None]] = {
        n: (Plan(tune=frozenset(t)), None) for n, t in tuned.items()
    }
    for share in (0.0001, 0.001):
        entries = picks(network().vit, share, clustered=False)
        plans |= {
            f"masked {share:.2%}": (Plan(tune=frozenset(entries)), entries),
            f"sparse {share:.2%}": (Plan(entries=entries), None),
        }
    clustered = picks(network().vit, 0.001, clustered=True)
    plans["sparse clustered"] = (Plan(entries=clustered), None)
    found = ratios({name: partial(stepper(*plan)[1], 0) for name, plan in plans.items()}, "full", rounds)
    bounds = {"BitFit": 0.78, "LayerNorm": 0.78, "attention": 0.84, "last block": 0.44, "head": 0.38}
    bounds["sparse clustered"] = 0.80
    yield from (Gate(f"step of {name} over full", found[name], bound) for name, bound in bounds.items())
    for size, bound in (("0.01%", 0.80), ("0.10%", 0.87)):
        yield Gate(f"sparse step over masked, {size}", found[f"sparse {size}"] / found[f"masked {size}"], bound)


def _bf16() -> Iterator[Gate]:
    if hardware.auto_precision("cpu") != "bf16":
        return
    everything = Plan(tune=frozenset(n for n, _ in network().vit.named_parameters()))
    (quick, quick_step), (_, fused_step) = (stepper(everything, None, torch.bfloat16) for _ in range(2))
    backbone.choose_attention(cast("VisionTransformer", quick.vit), "cpu", torch.bfloat16)
    steps = {
        "fp32": partial(stepper(everything)[1], 0),
        "fused": partial(fused_step, 0),
        "bf16": partial(quick_step, 0),
    }
    found = ratios(steps, "fp32", 5)
    yield Gate("bf16 step over fp32", found["bf16"], 0.70)
    yield Gate("bf16 step with attention in steps over one with it fused", found["bf16"] / found["fused"], 0.90)


def _head() -> Iterator[Gate]:
    model = network()
    Plan().carry_out(model.vit)
    features = Features(torch.randn(BATCH, 192))
    steps = {
        "through the network": lambda: _train(model, batch()[0]),
        "stored": lambda: _train(model.head, features.batch(np.arange(BATCH))),
    }
    yield Gate(
        "head-only step on stored features over one through the network",
        ratios(steps, "through the network", 7)["stored"],
        0.03,
    )


def _train(model: nn.Module, x: Tensor) -> None:
    optimizer = make_optimizer(model, RECIPE)
    F.cross_entropy(model(x), batch()[1]).backward()
    optimizer.step()


def _data() -> Iterator[Gate]:
    with TemporaryDirectory() as folder:
        found = ratios(bench_data.epochs(Path(folder)), "cached", 7)
    yield Gate("a DataLoader that decodes 512 px JPEGs over the cache", found["decoding"], 25, at_least=True)


def _importance() -> Iterator[Gate]:
    model = network()
    batches = [batch(i) for i in range(4)]
    probe = GradientProbe(deepcopy(model), lambda: iter(batches), F.cross_entropy)
    _, step = stepper(Plan(tune=frozenset(n for n, _ in model.vit.named_parameters())))
    work = {"training": lambda: [step(i) for i in range(4)], "estimate": lambda: probe.estimate("squares")}
    yield Gate("importance pass over an epoch of training", ratios(work, "training", 5)["estimate"], 1.10)
