"""`peftbench bench` on a GPU: how much of the card a training step uses, in each way, and whether the ways agree.

A ViT-B/16 of random weights at 224 px in bf16, 64 images a step that lie on the card, SGD: what a step multiplies,
divided by what one large product of matrices reaches on the same card. `--compile` and `--graph` stay opt-in wherever
these figures do not say PASS.
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

from peftbench.benchmarks.gates import Gate, picks
from peftbench.core.contract import Preprocessing
from peftbench.core.recipe import Recipe
from peftbench.data.batches import Images
from peftbench.models.compiled import compiled
from peftbench.models.head import Classifier, Head
from peftbench.models.plan import Plan
from peftbench.profiling import counting
from peftbench.training.loop import Learner, Progress, Task, fit
from peftbench.training.step import WAITED

CLASSES, IMAGES = 4, 256
PRODUCT = 8192  # rows and columns of the product that stands for all that the card can do
WAYS = MappingProxyType(
    {
        "": Recipe(),
        "--compile": Recipe(compile=True),
        "--graph": Recipe(graph=True),
        "--compile --graph": Recipe(compile=True, graph=True),
    }
)
HALF = (0.5, 0.5, 0.5)


def vit_b16() -> VisionTransformer:
    """The paper's size, 85.8 M weights, of random values."""
    return VisionTransformer(num_classes=0)


@dataclass(frozen=True)
class Rig:
    """What is measured, on which device."""

    device: torch.device
    build: Callable[[], VisionTransformer] = vit_b16
    side: int = 224
    batch: int = 64
    product: int = PRODUCT
    few: int = 20  # steps that are compared
    many: int = 100  # steps that are timed
    ways: Mapping[str, Recipe] = field(default_factory=lambda: WAYS)

    def model(self) -> Classifier:
        """The same at each call."""
        torch.manual_seed(0)
        vit = self.build()
        return Classifier(vit, Head(vit.num_features, CLASSES, "plain", 1.0, 0)).to(self.device)

    def task(self) -> Task:
        """Random images and labels, on the device."""
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, self.side, self.side), dtype=np.uint8)
        images = Images(pixels, Preprocessing(self.side, HALF, HALF), self.device, resident=True)
        return Task(images, torch.arange(IMAGES, device=self.device) % CLASSES, {}, CLASSES)

    def recipe(self, way: str, steps: int, evaluations: int = 1) -> Recipe:
        """Plain SGD, in that way."""
        base = replace(self.ways[way], name="bench", optimizer="sgd", lr=0.01, warmup=0.0, weight_decay=0.0)
        return replace(base, batch=self.batch, steps=steps, evaluations=evaluations)


def run(rig: Rig) -> Iterator[Gate]:
    """Every gate; some minutes on a card, most of them for compiling."""
    whole, biases = (Plan(tune=frozenset(_names(rig, end))) for end in ("", "bias"))
    reached = product(rig)
    yield Gate(f"TFLOP/s of a {rig.product} x {rig.product} bf16 product", reached / 1e12, 0.0, at_least=True)
    plain: dict[str, float] = {}
    for name, plan in {"full": whole, "BitFit": biases}.items():
        model, _ = _carried(rig, plan)
        flops = counting.passes(model, (rig.batch, 3, rig.side, rig.side), rig.device.type, torch.bfloat16).both
        for way in rig.ways:
            rate = images_per_second(rig, plan, way)
            plain.setdefault(name, rate)
            title = " ".join(filter(None, ("share of that product in a step of", name, way)))
            yield Gate(f"{title} ({rate:,.0f} images/s)", rate * flops / reached, 0.40, at_least=True)
            if way:
                yield Gate(f"images/s of {name} {way} over without", rate / plain[name], 1.0, at_least=True)
    for way in filter(None, rig.ways):
        gap = np.abs(losses(rig, whole, way) - losses(rig, whole, "")).max()
        yield Gate(f"losses with {way} against without: largest gap", float(gap), 2e-2, decides=True)
    for share in (0.0001, 0.001):
        entries = picks(rig.build(), share, clustered=True)
        rate = images_per_second(rig, Plan(entries=entries), "")
        yield Gate(f"step on {share:.2%} single weights over full", plain["full"] / rate, 0.87)
    if rig.device.type == "cuda":
        more = waits(rig, whole, 2 * 50) - waits(rig, whole, 50)
        yield Gate("times that 50 more steps wait for the card", more, 1)


def _names(rig: Rig, end: str) -> list[str]:
    return [name for name, _ in rig.build().named_parameters() if name.endswith(end)]


def _carried(rig: Rig, plan: Plan) -> tuple[Classifier, Learner]:
    """The model after `plan`, as a run has it."""
    model = rig.model()
    tuned = plan.carry_out(model.vit)
    tuned.cast_frozen(torch.bfloat16)
    head = {f"head/{name}": tensor for name, tensor in model.head.state_dict(keep_vars=True).items()}
    return model, Learner(model, {**tuned.tensors, **head})


def product(rig: Rig) -> float:
    """Operations a second of a large product of bf16 matrices; a multiply-add is two."""
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
    """The same model trained by one recipe after the other; what the first compiled, the others find."""
    model, learner = _carried(rig, plan)
    task = rig.task()
    with compiled(model.vit, enabled=recipes[0].compile):
        return [fit(learner, task, recipe, 0, torch.bfloat16) for recipe in recipes]


def images_per_second(rig: Rig, plan: Plan, way: str) -> float:
    """Of training, but for what happens once: first uses, compiling, capturing."""
    few, many = (rig.recipe(way, steps) for steps in (rig.few, rig.many))
    _, short, long = _fitted(rig, plan, few, few, many)
    return (rig.many - rig.few) * rig.batch / (long.train_seconds - short.train_seconds)


def losses(rig: Rig, plan: Plan, way: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Of the first few steps, one by one."""
    (progress,) = _fitted(rig, plan, rig.recipe(way, rig.few, evaluations=rig.few))
    return np.asarray([row["train_loss"] for row in progress.curve])


def waits(rig: Rig, plan: Plan, steps: int) -> int:
    """How often the processor waits for the card while it trains for some steps."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _fitted(rig, plan, rig.recipe("", steps))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(WAITED in str(warning.message) for warning in said)
