"""`peftbench measure`: what each method costs on this machine, on random images and labels. It needs no data.

Everything runs as in a job: the plan is carried out, `engine.fit` trains, `delta.write` saves. Of everything timed, a
first run is left out and as many more are taken as fit into a few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.benchmarks import forecast
from peftbench.core.constants import Precision
from peftbench.core.recipe import Recipe
from peftbench.core.spec import Places, Study
from peftbench.core.syntax import Spec
from peftbench.data.batches import Features, Images
from peftbench.errors import PluginError, RequestError
from peftbench.models import backbone, delta
from peftbench.models.backbone import Source
from peftbench.models.compiled import compiled
from peftbench.models.gradient_probe import Batch, GradientProbe
from peftbench.models.head import Classifier, Head
from peftbench.models.method import NoProbe
from peftbench.models.plan import Plan, Tuned
from peftbench.profiling import counting, hardware, history
from peftbench.profiling.counting import Alone, Counted
from peftbench.profiling.history import Latency, Measured
from peftbench.study.defaults import refuse_graph
from peftbench.study.method_grid import SizedMethod, expand, sized_methods
from peftbench.training import loop
from peftbench.training.loop import Learner, Task
from peftbench.training.step import WARM_UP

CLASSES = 2
PROBED = 2  # batches that a method may look at
LATENCIES = (1, 64)  # images
MOST = 200  # runs of one thing
REFERENCE = "full"
BATCH: Mapping[str, int] = {"cpu": 8, "cuda": 64}  # rates hardly depend on it on a CPU


@dataclass(frozen=True)
class Bench:
    """What is the same for every method of a table."""

    source: Source
    vit: VisionTransformer  # copied, never changed
    recipe: Recipe
    places: Places
    threads: int
    seconds: float  # to spend on each time

    @property
    def autocast(self) -> torch.dtype | None:
        """In which the network computes."""
        return hardware.PRECISIONS[self.recipe.precision]

    def images(self, count: int) -> Images:
        """Random ones."""
        side = self.source.preprocessing.size
        pixels = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
        device = torch.device(self.places.device)
        return Images(pixels, self.source.preprocessing, device, resident=device.type == "cuda")


def table(asked: Study, places: Places, seconds: float = 2.0) -> Iterator[Measured]:
    """One row a method and budget, full fine-tuning first; each is kept for `peftbench plan`.

    Raises RequestError, WeightsError.
    """
    source = backbone.locate(asked.backbone or "mini", asked.image_size, places.weights)
    methods = tuple(dict.fromkeys((Spec(REFERENCE), *expand(asked.methods))))
    asked = replace(asked, methods=methods, baselines=False)
    rows = sized_methods(asked, source)
    if idle := [row.name for row in rows if not row.method.trains]:
        raise RequestError(f"--methods {idle[0]}: it trains nothing, so there is nothing to measure; leave it out.")
    bench = _bench(asked, source, places, seconds)
    before = torch.get_num_threads()
    torch.set_num_threads(asked.threads)
    try:
        for row in rows:
            found = _row(row, bench)
            key = forecast.key(row, places.device, asked.threads, bench.recipe)
            with suppress(OSError):  # no place to keep them in; they are shown anyway
                history.remember(places.cache, key, found)
            yield found
    finally:
        torch.set_num_threads(before)


def _bench(asked: Study, source: Source, places: Places, seconds: float) -> Bench:
    auto = hardware.auto_precision(places.device)
    precision: Precision = auto if asked.precision == "auto" else asked.precision
    batch = asked.batch or BATCH[places.device]
    refuse_graph(asked, places.device)
    recipe = Recipe("measure", batch=batch, lr=1e-6, evaluations=1, precision=precision)
    recipe = replace(recipe, compile=asked.compile, graph=asked.graph)
    vit = source.build(0)
    backbone.choose_attention(vit, places.device, hardware.PRECISIONS[precision])
    return Bench(source, vit.to(places.device), recipe, places, asked.threads, seconds)


# --- one method ------------------------------------------------------------------------------------------------------


def _row(row: SizedMethod, bench: Bench) -> Measured:
    _bring_in(row)
    with hardware.peak_memory(bench.places.device) as peak:
        model, task = _model(bench), _task(bench)
        looked: list[int] = []
        started = time.perf_counter()
        plan = row.method.plan(model.vit, _probe(bench, model, task, looked))
        selection_seconds = time.perf_counter() - started
        tuned = plan.carry_out(model.vit)
        tuned.cast_frozen(bench.autocast)
        learner, task, alone = _learner(bench, model, tuned, task)
        with compiled(model.vit, enabled=bench.recipe.compile):
            progress = _train(bench, learner, task)
    counted = _count(bench, model, alone)
    size = _delta_bytes(plan, learner)
    latency = _latencies(bench, row, model, tuned)
    whole = latency.get("64 merged", latency["64"])
    return Measured(
        method=row.label,
        target=row.targets[0] if row.targets else None,
        trainable=plan.count(bench.vit),
        head=sum(p.numel() for p in model.head.parameters()),
        batch=bench.recipe.batch,
        steps=progress.step,
        stored=counted.stored,
        flops_forward=counted.forward,
        flops_training=counted.training,
        memory=counted.memory,
        peak_memory=peak.bytes,
        images_per_second=progress.step * bench.recipe.batch / progress.train_seconds,
        predicted_per_second=LATENCIES[-1] / whole.p50,
        latency=latency,
        selection_seconds=selection_seconds,
        selection_images=sum(looked),
        delta_bytes=size,
    )


def _bring_in(row: SizedMethod) -> None:
    """What the method imports when it is first carried out is no part of its peak."""
    blank = row.source.blank()
    with suppress(PluginError, RuntimeError):  # it asks for gradients, or for weights that are not there
        row.method.plan(blank, NoProbe()).carry_out(blank)


def _model(bench: Bench) -> Classifier:
    head = Head(bench.vit.num_features, CLASSES, "plain", 1.0, seed=0)
    return Classifier(deepcopy(bench.vit), head).to(bench.places.device)


def _task(bench: Bench) -> Task:
    images = bench.images(PROBED * bench.recipe.batch)
    labels = torch.arange(len(images), device=bench.places.device) % CLASSES
    return Task(images, labels, {}, CLASSES)


def _probe(bench: Bench, model: Classifier, task: Task, looked: list[int]) -> GradientProbe:
    """Two batches; `looked` gets the size of each that was asked for."""

    def batches() -> Iterator[Batch]:
        for index in np.split(np.arange(len(task.train)), PROBED):
            looked.append(len(index))
            yield task.train.batch(index), task.labels[torch.from_numpy(index).to(task.labels.device)]

    return GradientProbe(model, batches, F.cross_entropy, bench.autocast)


def _learner(bench: Bench, model: Classifier, tuned: Tuned, task: Task) -> tuple[Learner, Task, Alone | None]:
    """What trains and on what: features once, where only the head does."""
    head = {f"head/{name}": tensor for name, tensor in model.head.state_dict(keep_vars=True).items()}
    if not tuned.plan.empty:
        return Learner(model, {**tuned.tensors, **head}, tuned.callback), task, None
    width = model.head.linear.in_features
    features = Features(torch.randn(len(task.train), width, device=bench.places.device))
    return Learner(model.head, head), replace(task, train=features), Alone(model.head, (bench.recipe.batch, width))


def _train(bench: Bench, learner: Learner, task: Task) -> loop.Progress:
    """As many steps as fit into the time, behind first ones; what is compiled or captured is not in their seconds."""
    once = WARM_UP + 1 if bench.recipe.graph else 1  # steps until all that happens once has happened

    def fit(steps: int) -> loop.Progress:
        return loop.fit(learner, task, replace(bench.recipe, steps=steps), 0, bench.autocast)

    if bench.recipe.compile or bench.places.device == "cuda":
        fit(once)
    first = fit(once)
    steps = int(np.clip(bench.seconds * once / first.train_seconds, 1, MOST))
    timed = fit(once + steps if bench.recipe.graph else steps)
    if bench.recipe.graph:  # which is captured anew each time
        timed = replace(timed, step=steps, train_seconds=timed.train_seconds - first.train_seconds)
    return timed


def _count(bench: Bench, model: Classifier, alone: Alone | None) -> Counted:
    side = bench.source.preprocessing.size
    images = (bench.recipe.batch, 3, side, side)
    pixels = counting.batch_bytes(alone.batch if alone else images)
    return counting.count(model, images, bench.recipe, bench.places.device, bench.autocast, pixels, alone)


def _delta_bytes(plan: Plan, learner: Learner) -> int:
    about = {"method": {"name": "", "fields": {}}, "use": "none: a delta to be weighed"}
    with TemporaryDirectory() as folder:
        return delta.write(Path(folder), plan, learner.state(), about)


# --- latency ---------------------------------------------------------------------------------------------------------


def _latencies(bench: Bench, row: SizedMethod, model: Classifier, tuned: Tuned) -> dict[str, Latency]:
    """Unmerged and, where merging changes the network and leaves it plain, merged."""
    found = {str(size): _latency(bench, model, size) for size in LATENCIES}
    if row.method.merges and (tuned.plan.grafts or tuned.plan.entries) and tuned.merge():
        found |= {f"{size} merged": _latency(bench, model, size) for size in LATENCIES}
    return found


def _latency(bench: Bench, model: nn.Module, images: int) -> Latency:
    side, device = bench.source.preprocessing.size, bench.places.device
    batch = torch.randn(images, 3, side, side, device=device)
    model.eval()

    def predict() -> Tensor:
        with torch.inference_mode(), torch.autocast(device, bench.autocast) if bench.autocast else nullcontext():
            logits: Tensor = model(batch)
            return logits.float().cpu()  # waits for the device

    seconds = repeat(predict, bench.seconds)
    return Latency(p50=float(np.percentile(seconds, 50)), p95=float(np.percentile(seconds, 95)), runs=len(seconds))


def repeat(work: Callable[[], object], seconds: float) -> list[float]:
    """The seconds of each run: a first one left out, unless it took all the time there was."""
    first, times = _timed(work), list[float]()
    while first < seconds and sum(times) < seconds and len(times) < MOST:
        times.append(_timed(work))
    return times or [first]


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
