"""`peftbench bench` on a GPU: how much of the GPU a training step uses in each mode, and whether the modes agree.

A ViT-B/16 with random weights at 224 px in bf16, 64 images a step that are on the GPU, SGD: the FLOP/s of a step over
those of one large matrix product on the same GPU. `--compile` and `--graph` stay opt-in while a figure reads FAIL.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from peftbench.benchmarks.gates import Gate, random_mask
from peftbench.benchmarks.random_task import random_task
from peftbench.core.contract import Preprocessing
from peftbench.core.recipe import Recipe
from peftbench.models.compiled import compiled
from peftbench.models.head import Classifier
from peftbench.models.plan import Plan
from peftbench.profiling import counting
from peftbench.training.loop import Progress, Task, fit
from peftbench.training.step import SYNC_WARNING
from peftbench.training.trainee import Trainee, carry_out, make_classifier

CLASSES, IMAGES = 4, 256
PRODUCT = 8192  # rows and columns of the matrix product that measures the GPU's full speed
MODES = MappingProxyType(
    {
        "": Recipe(),
        "--compile": Recipe(compile=True),
        "--graph": Recipe(graph=True),
        "--compile --graph": Recipe(compile=True, graph=True),
    }
)
HALF = (0.5, 0.5, 0.5)


def vit_b16() -> VisionTransformer:
    """Return the paper's network, of 85.8 M weights, with random values."""
    return VisionTransformer(num_classes=0)


@dataclass(frozen=True)
class Rig:
    """What is measured, and on which device."""

    device: torch.device
    build: Callable[[], VisionTransformer] = vit_b16
    side: int = 224
    batch: int = 64
    product: int = PRODUCT
    few: int = 20  # steps whose losses are compared
    many: int = 100  # steps that are timed
    modes: Mapping[str, Recipe] = field(default_factory=lambda: MODES)

    def model(self) -> Classifier:
        """Return the network, the same at each call."""
        torch.manual_seed(0)
        return make_classifier(self.build(), CLASSES, Recipe(), seed=0).to(self.device)

    def task(self) -> Task:
        """Return random images and labels, on the device."""
        return random_task(Preprocessing(self.side, HALF, HALF), IMAGES, CLASSES, str(self.device))

    def recipe(self, mode: str, steps: int, evaluations: int = 1) -> Recipe:
        """Return a recipe of plain SGD in that mode."""
        base = replace(self.modes[mode], name="bench", optimizer="sgd", lr=0.01, warmup=0.0, weight_decay=0.0)
        return replace(base, batch=self.batch, steps=steps, evaluations=evaluations)


def run(rig: Rig) -> Iterator[Gate]:
    """Yield every gate; takes some minutes on a GPU, most of them for compiling."""
    whole, biases = (Plan(tune=frozenset(_names(rig, end))) for end in ("", "bias"))
    reached = product(rig)
    yield Gate(f"TFLOP/s of a {rig.product} x {rig.product} bf16 product", reached / 1e12, 0.0, at_least=True)
    plain: dict[str, float] = {}
    for name, plan in {"full": whole, "BitFit": biases}.items():
        flops = counting.passes(
            _trainee(rig, plan).model, (rig.batch, 3, rig.side, rig.side), rig.device.type, torch.bfloat16
        ).both
        for mode in rig.modes:
            rate = images_per_second(rig, plan, mode)
            plain.setdefault(name, rate)
            title = " ".join(filter(None, ("share of that product in a step of", name, mode)))
            yield Gate(f"{title} ({rate:,.0f} images/s)", rate * flops / reached, 0.40, at_least=True)
            if mode:
                yield Gate(f"images/s of {name} {mode} over without", rate / plain[name], 1.0, at_least=True)
    for mode in filter(None, rig.modes):
        gap = np.abs(losses(rig, whole, mode) - losses(rig, whole, "")).max()
        yield Gate(f"losses with {mode} against without: largest gap", float(gap), 2e-2, decides=True)
    for share in (0.0001, 0.001):
        entries = random_mask(rig.build(), share, clustered=True)
        rate = images_per_second(rig, Plan(entries=entries), "")
        yield Gate(f"step on {share:.2%} single weights over full", plain["full"] / rate, 0.87)
    if rig.device.type == "cuda":
        more = waits(rig, whole, 2 * 50) - waits(rig, whole, 50)
        yield Gate("times that 50 more steps wait for the GPU", more, 1)


def _names(rig: Rig, end: str) -> list[str]:
    return [name for name, _ in rig.build().named_parameters() if name.endswith(end)]


def _trainee(rig: Rig, plan: Plan) -> Trainee:
    return carry_out(rig.model(), plan, rig.task(), torch.bfloat16)


def product(rig: Rig) -> float:
    """Return the FLOP/s of a large product of bf16 matrices; a multiply-add is two."""
    a, b = (torch.randn(rig.product, rig.product, device=rig.device, dtype=torch.bfloat16) for _ in range(2))
    times = [_seconds(rig, lambda: a @ b) for _ in range(12)]
    return 2 * rig.product**3 / float(np.median(times[2:]))


def _seconds(rig: Rig, work: Callable[[], object]) -> float:
    _wait(rig)
    started = time.perf_counter()
    work()
    _wait(rig)
    return time.perf_counter() - started


def _wait(rig: Rig) -> None:
    if rig.device.type == "cuda":
        torch.cuda.synchronize()


def _fitted(rig: Rig, plan: Plan, *recipes: Recipe) -> list[Progress]:
    """Train one model by one recipe after the other; the later ones reuse what the first has compiled."""
    trainee = _trainee(rig, plan)
    with compiled(trainee.model.vit, enabled=recipes[0].compile):
        return [fit(trainee.learner, trainee.task, recipe, 0, torch.bfloat16) for recipe in recipes]


def images_per_second(rig: Rig, plan: Plan, mode: str) -> float:
    """Return the rate of training without what happens only once: first uses, compiling, capturing."""
    few, many = (rig.recipe(mode, steps) for steps in (rig.few, rig.many))
    _, short, long = _fitted(rig, plan, few, few, many)
    return (rig.many - rig.few) * rig.batch / (long.train_seconds - short.train_seconds)


def losses(rig: Rig, plan: Plan, mode: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the loss of each of the first `few` steps."""
    (progress,) = _fitted(rig, plan, rig.recipe(mode, rig.few, evaluations=rig.few))
    return np.asarray([row["train_loss"] for row in progress.curve])


def waits(rig: Rig, plan: Plan, steps: int) -> int:
    """Return how often the CPU waits for the GPU while training for some steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _fitted(rig, plan, rig.recipe("", steps))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(SYNC_WARNING in str(warning.message) for warning in caught)
