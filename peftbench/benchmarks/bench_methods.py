"""What users run, for `peftbench bench`: masks of SH-PEFT on mini's weights and phantom images, through the engine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch

from peftbench.benchmarks.gates import Gate, dense_mask, ratios
from peftbench.core.constants import Precision
from peftbench.core.recipe import Recipe
from peftbench.core.registry import registry
from peftbench.data.availability import open_dataset
from peftbench.data.pixel_cache import prepare
from peftbench.models import backbone
from peftbench.models.head import Classifier
from peftbench.models.method import Method
from peftbench.models.plan import Plan
from peftbench.models.top_k import backbone_size
from peftbench.profiling import hardware
from peftbench.profiling.hardware import PRECISIONS
from peftbench.training.loop import Learner, Task, fit
from peftbench.training.trainee import Trainee, carry_out, choose_ways, make_classifier, make_probe, make_task

BACKBONE, DATASET = "mini", "phantom_ultrasound"
BOUNDS: Mapping[float, float] = {0.01: 0.85, 0.001: 0.80, 0.0001: 0.75}  # share of weights -> step over a full one
OTHERS: Mapping[str, float | None] = {  # methods of other masks -> share of weights, or as by default
    "gps": None,
    "spt_lora": 0.01,
    "control_within": 0.01,
    "control_random": 0.01,
}
SPREAD = 0.1  # share of weights drawn at random, where no way but the dense one is left
RECIPE = Recipe("bench", lr=1e-3, batch=32, evaluations=1, warmup=0.0)
STEPS = 2  # of a method before it is the next one's turn
EQUAL_STEPS = 5  # whose losses must agree
FEW_BATCHES: Mapping[str, Any] = {"batches": 4}  # for the selection, where its time does not matter


@dataclass(frozen=True)
class Workbench:
    """The network, the images and the recipe that the methods share."""

    task: Task
    recipe: Recipe
    cache: Path

    def model(self) -> Classifier:
        """Return the pretrained network with a new head."""
        vit = backbone.locate(BACKBONE).build(0)
        backbone.choose_attention(vit, "cpu", PRECISIONS[self.recipe.precision])
        return make_classifier(vit, self.task.classes, self.recipe, seed=0)

    def trainee(self, method: Method) -> Trainee:
        """Return the network with the method's plan carried out."""
        model = self.model()
        probe = make_probe(model, self.task, self.recipe, 0, self.cache / f"probe_{self.recipe.precision}")
        plan = method.plan(model.vit, probe)
        hardware.free()  # as a job does
        trainee = carry_out(model, plan, self.task, PRECISIONS[self.recipe.precision])
        return choose_ways(trainee, self.recipe, self.cache)

    def train(self, learner: Learner, steps: int, evaluations: int = 1) -> list[float]:
        """Train for some steps; return the mean loss before each evaluation."""
        recipe = replace(self.recipe, steps=steps, evaluations=evaluations)
        progress = fit(learner, self.task, recipe, 0, PRECISIONS[recipe.precision])
        return [row["train_loss"] for row in progress.curve]


def open_workbench(cache: Path, precision: Precision) -> Workbench:
    """Draw and decode the images; the folder `cache` must last as long as the workbench."""
    dataset, preprocessing = open_dataset(DATASET), backbone.locate(BACKBONE).preprocessing
    data = prepare(dataset.card, dataset.load(cache, 0), preprocessing, cache)
    return Workbench(make_task(data, preprocessing, "cpu", ()), replace(RECIPE, precision=precision), cache)


def sized(name: str, share: float | None) -> Method:
    """Return a method at the size nearest to a share of the backbone's weights, or as by default for None."""
    method: Method = registry("methods").get(name)()
    if share is None:
        return method
    blank = backbone.locate(BACKBONE, blank=True).blank()
    return method.within(round(share * backbone_size(blank)), blank).method


def mask_equality(rounds: int) -> Iterator[Gate]:  # noqa: ARG001 - nothing is timed
    """Compare sparse training on SH-PEFT's mask with dense training with masked gradients, in float32."""
    with TemporaryDirectory() as folder:
        bench = open_workbench(Path(folder), "fp32")
        bench = replace(bench, recipe=replace(bench.recipe, optimizer="sgd", lr=0.05, weight_decay=0.0))
        sparse = bench.trainee(replace(sized("shpeft", 0.01), **FEW_BATCHES))
        losses = bench.train(sparse.learner, EQUAL_STEPS, EQUAL_STEPS)
        expected = bench.train(_masked(bench.model(), sparse.tuned.plan, bench.task), EQUAL_STEPS, EQUAL_STEPS)
    gap = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    yield Gate("losses of SH-PEFT at 1% against masked training: largest gap", gap, 2e-6, decides=True)


def _masked(model: Classifier, plan: Plan, task: Task) -> Learner:
    """Return the dense form of a plan of single entries: whole tensors train, with all other gradients set to zero."""
    trainee = carry_out(model, Plan(tune=frozenset(plan.entries)), task)
    for name, index in plan.entries.items():
        parameter = model.vit.get_parameter(name)
        parameter.register_hook(partial(torch.mul, dense_mask(parameter, index)))
    return trainee.learner


def mask_steps(rounds: int) -> Iterator[Gate]:
    """Time steps on chosen weights over steps of full fine-tuning, in each precision that this CPU computes in."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if hardware.auto_precision("cpu") == "bf16" else ("fp32",)
    ours = {f"SH-PEFT at {share:.2%}": ("shpeft", share) for share in BOUNDS}
    others = {f"{name} at {share:.0%}" if share else name: (name, share) for name, share in OTHERS.items()}
    others[f"control_random at {SPREAD:.0%}"] = ("control_random", SPREAD)
    for precision in precisions:
        with TemporaryDirectory() as folder:
            bench = open_workbench(Path(folder), precision)
            work: dict[str, Callable[[], object]] = {
                name: partial(bench.train, bench.trainee(sized(*method)).learner, STEPS)
                for name, method in {"full": ("full", None), **ours, **others}.items()
            }
            found = ratios(work, "full", rounds)
        for (name, _), bound in zip(ours.items(), BOUNDS.values(), strict=True):
            yield Gate(f"step of {name} over full, {precision}", found[name], bound)
        slowest = max(others, key=found.__getitem__)
        yield Gate(f"step of any other mask over full, {precision}: {slowest}", found[slowest], 1.0)


def peak_memory(rounds: int) -> Iterator[Gate]:  # noqa: ARG001 - measured once, each in a new process
    """Measure a process's peak with SH-PEFT at 1%, selection included, over LoRA's of the same count and full's."""
    peaks = dict[str, int]()
    methods: dict[str, float | None] = {"shpeft": 0.01, "lora": 0.01, "full": None}
    for name, share in methods.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks[name] = process.submit(measured_peak, name, share).result()
    yield Gate("process's peak memory, SH-PEFT at 1% over LoRA of its count", peaks["shpeft"] / peaks["lora"], 1.10)
    yield Gate("process's peak memory, SH-PEFT at 1% over full", peaks["shpeft"] / peaks["full"], 1.0)


def measured_peak(name: str, share: float | None) -> int:
    """Return the peak of this process's memory, in bytes, while a method is planned and trains for a few steps."""
    torch.set_num_threads(1)
    method = sized(name, share)
    with TemporaryDirectory() as folder:
        bench = open_workbench(Path(folder), "fp32")
        before = psutil.Process().memory_info().rss
        with hardware.peak_memory("cpu") as growth:
            bench.train(bench.trainee(method).learner, STEPS)
    return before + growth.bytes
