"""`peftbench bench`: what the engine costs against a plain implementation, as ratios within one process.

Times are process CPU seconds of one thread, variants in turn, the median of the pairwise ratios. A time is shown as
PASS or FAIL only; equality and memory, which do not depend on the load of the machine, decide the exit code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.benchmarks import bench_data
from peftbench.benchmarks.bench_methods import mask_equality, mask_steps, peak_memory
from peftbench.benchmarks.gates import Gate, dense_mask, random_mask, ratios
from peftbench.benchmarks.random_task import random_task
from peftbench.core.contract import Preprocessing
from peftbench.core.recipe import Recipe
from peftbench.data.batches import FeatureBatches, ImageBatches, batch_order
from peftbench.models import backbone
from peftbench.models.gradient_probe import GradientProbe
from peftbench.models.head import Classifier
from peftbench.models.plan import Plan
from peftbench.profiling import hardware
from peftbench.training.loop import Learner, Task, fit
from peftbench.training.optimizer import make_optimizer
from peftbench.training.trainee import count_step, make_classifier

BATCH, CLASSES, SIDE = 32, 4, 64
LOOP_IMAGES = 256
RECIPE = Recipe("bench", "sgd", 0.05, weight_decay=0.01, batch=BATCH, steps=50, evaluations=1, precision="fp32")

GatePart = Callable[[int], Iterator[Gate]]  # some gates, from the number of rounds to time


def run(rounds: int = 5, *, timed: bool = True) -> list[Gate]:
    """Return every gate, in about three minutes; without `timed` only those that decide the exit code."""
    parts: tuple[GatePart, ...] = (equality, mask_equality, counted_memory)
    if timed:
        parts += (
            mask_steps,
            peak_memory,
            loop_overhead,
            method_steps,
            bf16_steps,
            head_step,
            data_epochs,
            importance_pass,
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [gate for part in parts for gate in part(rounds)]
    finally:
        torch.set_num_threads(threads)


# --- what is compared ------------------------------------------------------------------------------------------------


def network() -> Classifier:
    """Return a ViT-Ti at 64 px, the same at each call."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=SIDE, patch_size=8, embed_dim=192, depth=12, num_heads=3, num_classes=0)
    return make_classifier(vit, CLASSES, RECIPE, seed=0)


def batch(number: int = 0) -> tuple[Tensor, Tensor]:
    """Return random images (BATCH, 3, SIDE, SIDE) and labels (BATCH,)."""
    draw = torch.Generator().manual_seed(number)
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=draw), torch.randint(CLASSES, (BATCH,), generator=draw)


def stepper(
    plan: Plan, mask: Mapping[str, Tensor] | None = None, autocast: torch.dtype | None = None
) -> tuple[Classifier, Callable[[int], float]]:
    """Return a model that carries `plan`, and a function that takes one training step and returns its loss.

    With `mask`, dense gradients are computed and then masked: the plain way.
    """
    model = network()
    plan.carry_out(model.vit)
    keep = {
        model.vit.get_parameter(n): dense_mask(model.vit.get_parameter(n), index) for n, index in (mask or {}).items()
    }
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
        for parameter, chosen in keep.items():  # the optimizer's own weight decay would not be masked
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            decay = RECIPE.weight_decay if parameter.dim() == 2 or parameter.dim() == 4 else 0.0  # noqa: PLR2004
            grad.add_(parameter.detach(), alpha=decay).mul_(chosen)
        optimizer.step()
        return loss.item()

    return model, step


# --- gates that decide -----------------------------------------------------------------------------------------------


def equality(rounds: int) -> Iterator[Gate]:  # noqa: ARG001 - nothing is timed
    """Compare sparse with masked dense training: the largest difference of the losses over three steps."""
    for name, clustered in (("random", False), ("clustered", True)):
        entries = random_mask(network().vit, 0.001, clustered=clustered)
        _, sparse = stepper(Plan(entries=entries))
        _, masked = stepper(Plan(tune=frozenset(entries)), entries)
        gap = max(abs(sparse(0) - masked(0)) for _ in range(3))
        yield Gate(f"losses of sparse against masked training, {name} masks: largest gap", gap, 1e-5, decides=True)


def counted_memory(rounds: int) -> Iterator[Gate]:  # noqa: ARG001 - nothing is timed
    """Compare the memory of a sparse step with that of full fine-tuning, counted tensor by tensor."""
    whole = step_memory(everything())
    for share, bound in ((0.0001, 0.80), (0.001, 0.80)):
        ratio = step_memory(Plan(entries=random_mask(network().vit, share, clustered=False))) / whole
        yield Gate(f"counted memory of a sparse step over a full one, {share:.2%}", ratio, bound, decides=True)


def everything() -> Plan:
    """Return the plan of full fine-tuning."""
    return Plan(tune=frozenset(n for n, _ in network().vit.named_parameters()))


def step_memory(plan: Plan) -> int:
    """Return the bytes that a step holds: weights, saved activations, gradients, optimizer state, the batch."""
    return count_step(stepper(plan)[0], RECIPE, SIDE).memory.total


# --- times -----------------------------------------------------------------------------------------------------------


def loop_overhead(rounds: int) -> Iterator[Gate]:
    """Compare the training loop with a plain one that computes the same."""
    found = ratios(training_loops(network(), SIDE, replace(RECIPE, batch=BATCH, steps=4)), "plain", rounds)
    yield Gate("the engine's loop over a plain one of the same steps", found["engine"], 1.03)


def training_loops(
    model: nn.Module, side: int, recipe: Recipe, classes: int = CLASSES
) -> Mapping[str, Callable[[], nn.Module]]:
    """Return `engine` and `plain`: each call trains its own copy of the model by SGD and returns it."""
    recipe = replace(recipe, optimizer="sgd", weight_decay=0.0, warmup=0.0, evaluations=1)
    task = random_task(Preprocessing(side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), LOOP_IMAGES, classes)
    index = list(batch_order(LOOP_IMAGES, recipe.batch, 0, 0, recipe.steps))
    by_engine, by_plain = deepcopy(model), deepcopy(model)

    def engine() -> nn.Module:
        fit(Learner(by_engine, dict(by_engine.named_parameters())), task, recipe, 0)
        return by_engine

    return {"engine": engine, "plain": lambda: plain_loop(by_plain, task, index, recipe)}


def plain_loop(model: nn.Module, task: Task, batches: Sequence[NDArray[np.int64]], recipe: Recipe) -> nn.Module:
    """Train without checkpoints, evaluations or anything to resume. Raises FloatingPointError on divergence."""
    pixels = torch.from_numpy(cast("ImageBatches", task.train).pixels)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    total = 0.0
    model.train()
    for step, index in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        chosen = torch.from_numpy(index)
        x = (pixels[chosen].float() / 255 - 0.5) / 0.5
        loss = F.cross_entropy(model(x), task.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    if not math.isfinite(total):
        raise FloatingPointError(f"The plain loop diverged: its losses sum to {total}.")
    return model


def method_steps(rounds: int) -> Iterator[Gate]:
    """Compare steps that train parts of the network with a step that trains all of it."""
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
        entries = random_mask(network().vit, share, clustered=False)
        plans |= {
            f"masked {share:.2%}": (Plan(tune=frozenset(entries)), entries),
            f"sparse {share:.2%}": (Plan(entries=entries), None),
        }
    clustered = random_mask(network().vit, 0.001, clustered=True)
    plans["sparse clustered"] = (Plan(entries=clustered), None)
    found = ratios({name: partial(stepper(*plan)[1], 0) for name, plan in plans.items()}, "full", rounds)
    bounds = {"BitFit": 0.78, "LayerNorm": 0.78, "attention": 0.84, "last block": 0.44, "head": 0.38}
    bounds["sparse clustered"] = 0.80
    yield from (Gate(f"step of {name} over full", found[name], bound) for name, bound in bounds.items())
    for size, bound in (("0.01%", 0.80), ("0.10%", 0.87)):
        yield Gate(f"sparse step over masked, {size}", found[f"sparse {size}"] / found[f"masked {size}"], bound)


def bf16_steps(rounds: int) -> Iterator[Gate]:
    """Compare a full step in bf16 with one in fp32, on CPUs that multiply bf16 natively."""
    if hardware.auto_precision("cpu") != "bf16":
        return
    plan = everything()
    (quick, quick_step), (_, fused_step) = (stepper(plan, None, torch.bfloat16) for _ in range(2))
    backbone.choose_attention(cast("VisionTransformer", quick.vit), "cpu", torch.bfloat16)
    steps = {
        "fp32": partial(stepper(plan)[1], 0),
        "fused": partial(fused_step, 0),
        "bf16": partial(quick_step, 0),
    }
    found = ratios(steps, "fp32", rounds)
    yield Gate("bf16 step over fp32", found["bf16"], 0.70)
    yield Gate("bf16 step with attention written out over one with it fused", found["bf16"] / found["fused"], 0.90)


def head_step(rounds: int) -> Iterator[Gate]:
    """Compare training the head on stored features with training it through the network."""
    model = network()
    Plan().carry_out(model.vit)
    features = FeatureBatches(torch.randn(BATCH, 192))
    steps = {
        "through the network": lambda: _train(model, batch()[0]),
        "stored": lambda: _train(model.head, features.batch(np.arange(BATCH))),
    }
    yield Gate(
        "head-only step on stored features over one through the network",
        ratios(steps, "through the network", rounds)["stored"],
        0.03,
    )


def _train(model: nn.Module, x: Tensor) -> None:
    optimizer = make_optimizer(model, RECIPE)
    F.cross_entropy(model(x), batch()[1]).backward()
    optimizer.step()


def data_epochs(rounds: int) -> Iterator[Gate]:
    """Compare decoding JPEG files in every epoch with reading the cache of decoded images."""
    with TemporaryDirectory() as folder:
        found = ratios(bench_data.epochs(Path(folder)), "cached", rounds)
    yield Gate("a DataLoader that decodes 512 px JPEGs over the cache", found["decoding"], 25, at_least=True)


def importance_pass(rounds: int) -> Iterator[Gate]:
    """Compare computing SH-PEFT's gradients with an epoch of full training."""
    model = network()
    batches = [batch(i) for i in range(4)]
    probe = GradientProbe(deepcopy(model), lambda: iter(batches), F.cross_entropy)
    _, step = stepper(everything())
    work = {"training": lambda: [step(i) for i in range(4)], "estimate": lambda: probe.estimate("squares")}
    yield Gate("importance pass over an epoch of training", ratios(work, "training", rounds)["estimate"], 1.10)
