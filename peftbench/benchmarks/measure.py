"""`peftbench measure`: what each method costs on this machine, on random images and labels. It needs no data.

Everything runs as in a job: the plan is carried out, `fit` trains, `delta.write` saves. Of everything timed, a first
run is left out. Methods train in turn, a few steps each, so that a machine that is busy for a while slows down all of
them; CPU time is measured beside wall time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from peftbench.benchmarks import forecast
from peftbench.benchmarks.random_task import random_task
from peftbench.core.constants import Precision
from peftbench.core.recipe import Recipe
from peftbench.core.spec import Places, Study
from peftbench.core.syntax import Spec
from peftbench.data.batches import FeatureBatches
from peftbench.errors import PluginError, RequestError
from peftbench.models import backbone, delta
from peftbench.models.backbone import Network, Source
from peftbench.models.compiled import compiled
from peftbench.models.gradient_probe import Batch, GradientProbe
from peftbench.models.head import Classifier
from peftbench.models.method import NoProbe
from peftbench.models.plan import Plan, Tuned
from peftbench.profiling import hardware, history
from peftbench.profiling.clock import Elapsed
from peftbench.profiling.history import Latency, Measured
from peftbench.study.defaults import refuse_graph
from peftbench.study.method_grid import SizedMethod, expand, sized_methods
from peftbench.training.loop import Learner, Progress, Task, fit
from peftbench.training.step import WARM_UP
from peftbench.training.trainee import Trainee, carry_out, choose_ways, count_step, make_classifier, make_probe

CLASSES = 2
TRAIN_BATCHES = 2  # in an epoch, whose gradients a method may read
LATENCY_BATCHES = (1, 64)  # images
MIN_STEPS = 10  # of training, that are timed
MAX_RUNS = 200  # of one thing
ROUND: Mapping[str, int] = {"cpu": 2, "cuda": 20}  # training steps of a method before it is the next one's turn
REFERENCE = "full"
BATCH: Mapping[str, int] = {"cpu": 8, "cuda": 64}  # rates hardly depend on it on a CPU


@dataclass(frozen=True)
class Setup:
    """What is the same for every method of a table."""

    source: Source
    vit: Network  # copied, never changed
    recipe: Recipe
    places: Places
    threads: int
    seconds: float  # to spend on each time

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that the network computes in."""
        return hardware.PRECISIONS[self.recipe.precision]

    @property
    def once(self) -> int:
        """The number of steps in which all that happens only once happens."""
        return WARM_UP + 1 if self.recipe.graph else 1

    def task(self) -> Task:
        """Return random images."""
        return random_task(self.source.preprocessing, TRAIN_BATCHES * self.recipe.batch, CLASSES, self.places.device)

    def model(self) -> Classifier:
        """Return a copy of the pretrained network with a new head."""
        return make_classifier(deepcopy(self.vit), CLASSES, self.recipe, seed=0).to(self.places.device)


def table(asked: Study, places: Places, seconds: float = 2.0) -> Iterator[Measured]:
    """Yield one row per method and budget, full fine-tuning first; each is stored for `peftbench plan`.

    Raises RequestError, WeightsError.
    """
    source = backbone.locate(asked.backbone or "mini", asked.image_size, places.weights)
    methods = tuple(dict.fromkeys((Spec(REFERENCE), *expand(asked.methods))))
    asked = replace(asked, methods=methods, baselines=False)
    rows = sized_methods(asked, source)
    if idle := [row.name for row in rows if not row.method.has_learning_rate]:
        raise RequestError(f"--methods {idle[0]}: it has no training steps to measure; leave it out.")
    setup = _set_up(asked, source, places, seconds)
    before = torch.get_num_threads()
    torch.set_num_threads(asked.threads)
    alone = asked.compile or asked.graph  # what is compiled for one method is lost with the next
    try:
        for group in [[row] for row in rows] if alone else [rows]:
            for row, found in _measure(group, setup):
                key = forecast.key(row, places.device, asked.threads, setup.recipe)
                with suppress(OSError):  # a cache that cannot be written; the row is shown anyway
                    history.remember(places.cache, key, found)
                yield found
    finally:
        torch.set_num_threads(before)


def _set_up(asked: Study, source: Source, places: Places, seconds: float) -> Setup:
    auto = hardware.auto_precision(places.device)
    precision: Precision = auto if asked.precision == "auto" else asked.precision
    batch = asked.batch or BATCH[places.device]
    refuse_graph(asked, places.device)
    recipe = Recipe("measure", batch=batch, lr=1e-6, evaluations=1, precision=precision)
    recipe = replace(recipe, compile=asked.compile, graph=asked.graph)
    vit = source.build(0)
    backbone.choose_attention(vit, places.device, hardware.PRECISIONS[precision])
    return Setup(source, vit.to(places.device), recipe, places, asked.threads, seconds)


# --- training --------------------------------------------------------------------------------------------------------


@dataclass
class TimedMethod:
    """A method that is being measured."""

    row: SizedMethod
    trainee: Trainee
    selection_seconds: float
    selection_images: int
    peak_memory: int = 0
    steps: int = 0  # that were timed
    rounds: list[Elapsed] = field(default_factory=list)  # per step

    def add(self, progress: Progress, steps: int) -> None:
        """Note the time of some steps."""
        self.steps += steps
        self.rounds.append(Elapsed(progress.train_seconds / steps, progress.train_cpu_seconds / steps))


def _measure(rows: Sequence[SizedMethod], setup: Setup) -> Iterator[tuple[SizedMethod, Measured]]:
    """Train methods in turn and yield what each one costs."""
    with ExitStack() as stack:
        candidates = [_prepare(row, setup, stack) for row in rows]
        if setup.recipe.compile or setup.recipe.graph:
            _train_at_once(candidates[0], setup)
        else:
            _train_in_turn(candidates, setup)
    for one in candidates:
        yield one.row, _measured(one, setup)


def _prepare(row: SizedMethod, setup: Setup, stack: ExitStack) -> TimedMethod:
    """Carry out a method and train for a first time, which is not timed."""
    _import_all(row)
    with hardware.peak_memory(setup.places.device) as peak:
        model, task = setup.model(), setup.task()
        probe, probed = _counting_probe(model, task, setup.recipe)
        started = time.perf_counter()
        plan = row.method.plan(model.vit, probe)
        selection_seconds = time.perf_counter() - started
        trainee = carry_out(model, plan, task, setup.autocast)
        if trainee.freezes_features:
            trainee = trainee.on_features(_random_features(model, task))
        trainee = choose_ways(trainee, setup.recipe, setup.places.cache)
        stack.enter_context(compiled(model.vit, enabled=setup.recipe.compile))
        found = TimedMethod(row, trainee, selection_seconds, sum(probed))
        for _ in range(2 if setup.recipe.compile or setup.places.device == "cuda" else 1):
            _fit(found, setup, setup.once)
    found.peak_memory = peak.bytes
    return found


def _fit(one: TimedMethod, setup: Setup, steps: int) -> Progress:
    return fit(one.trainee.learner, one.trainee.task, replace(setup.recipe, steps=steps), 0, setup.autocast)


def _train_in_turn(candidates: Sequence[TimedMethod], setup: Setup) -> None:
    """Train a few steps of each method in turn, until each has MIN_STEPS and the time is spent."""
    steps, spent = ROUND[setup.places.device], 0.0
    enough = setup.seconds * len(candidates)
    while candidates[0].steps < MIN_STEPS or (spent < enough and candidates[0].steps < MAX_RUNS):
        for one in candidates:
            progress = _fit(one, setup, steps)
            one.add(progress, steps)
            spent += progress.train_seconds


def _train_at_once(one: TimedMethod, setup: Setup) -> None:
    """Train for as long as the time allows; each run captures a new graph, so its first steps are subtracted."""
    first = _fit(one, setup, setup.once)
    steps = int(np.clip(setup.seconds * setup.once / first.train_seconds, MIN_STEPS, MAX_RUNS))
    timed = _fit(one, setup, setup.once + steps)
    wall, cpu = timed.train_seconds - first.train_seconds, timed.train_cpu_seconds - first.train_cpu_seconds
    one.add(replace(timed, train_seconds=wall, train_cpu_seconds=cpu), steps)


# --- one method ------------------------------------------------------------------------------------------------------


def _measured(one: TimedMethod, setup: Setup) -> Measured:
    """Count what a step of a method costs, and time its prediction."""
    model, tuned, batch = one.trainee.model, one.trainee.tuned, setup.recipe.batch
    side, head_only = setup.source.preprocessing.size, one.trainee.head_only
    counted = count_step(model, setup.recipe, side, setup.places.device, head_only=head_only)
    size = _delta_bytes(tuned.plan, one.trainee.learner)
    latency = _latencies(setup, one.row, model, tuned)
    whole = latency.get("64 merged", latency["64"])
    return Measured(
        method=one.row.label,
        target=one.row.targets[0] if one.row.targets else None,
        trainable=tuned.plan.count(setup.vit),
        head=sum(p.numel() for p in model.head.parameters()),
        batch=batch,
        steps=one.steps,
        stored=counted.stored,
        flops_forward=counted.forward,
        flops_training=counted.training,
        memory=counted.memory,
        peak_memory=one.peak_memory,
        images_per_second=batch / median(step.wall for step in one.rounds),
        cpu_seconds_per_image=median(step.cpu for step in one.rounds) / batch,
        predicted_per_second=LATENCY_BATCHES[-1] / whole.p50,
        latency=latency,
        selection_seconds=one.selection_seconds,
        selection_images=one.selection_images,
        delta_bytes=size,
    )


def _import_all(row: SizedMethod) -> None:
    """Carry out the plan once on the meta device, so that what the method imports does not count as its memory."""
    blank = row.source.blank()
    with suppress(PluginError, RuntimeError):  # it needs gradients, or weights that are missing
        row.method.plan(blank, NoProbe()).carry_out(blank)


def _counting_probe(model: Classifier, task: Task, recipe: Recipe) -> tuple[GradientProbe, list[int]]:
    """Return a probe, and a list that gets the size of each batch that was read from it."""
    probe, sizes = make_probe(model, task, recipe, seed=0), list[int]()

    def batches() -> Iterator[Batch]:
        for images, labels in probe.batches():
            sizes.append(len(images))
            yield images, labels

    return replace(probe, batches=batches), sizes


def _random_features(model: Classifier, task: Task) -> Task:
    """Return the task with random features in place of images."""
    features = torch.randn(len(task.train), model.head.linear.in_features, device=task.labels.device)
    return replace(task, train=FeatureBatches(features))


def _delta_bytes(plan: Plan, learner: Learner) -> int:
    about = {"method": {"name": "", "fields": {}}, "use": "none: written to find its size"}
    with TemporaryDirectory() as folder:
        return delta.write(Path(folder), plan, learner.state(), about)


# --- latency ---------------------------------------------------------------------------------------------------------


def _latencies(setup: Setup, row: SizedMethod, model: Classifier, tuned: Tuned) -> dict[str, Latency]:
    """Return latencies by number of images, and also merged where merging changes the network and leaves it plain."""
    found = {str(size): _latency(setup, model, size) for size in LATENCY_BATCHES}
    if row.method.merges and (tuned.plan.grafts or tuned.plan.entries) and tuned.merge():
        found |= {f"{size} merged": _latency(setup, model, size) for size in LATENCY_BATCHES}
    return found


def _latency(setup: Setup, model: nn.Module, images: int) -> Latency:
    side, device = setup.source.preprocessing.size, setup.places.device
    batch = torch.randn(images, 3, side, side, device=device)
    model.eval()

    def predict() -> Tensor:
        with torch.inference_mode(), torch.autocast(device, setup.autocast) if setup.autocast else nullcontext():
            logits: Tensor = model(batch)
            return logits.float().cpu()  # waits for the device

    seconds = repeat(predict, setup.seconds)
    return Latency(p50=float(np.percentile(seconds, 50)), p95=float(np.percentile(seconds, 95)), runs=len(seconds))


def repeat(work: Callable[[], object], seconds: float) -> list[float]:
    """Return the seconds of each run, the first one left out unless it took all the time."""
    first, times = _timed(work), list[float]()
    while first < seconds and sum(times) < seconds and len(times) < MAX_RUNS:
        times.append(_timed(work))
    return times or [first]


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
