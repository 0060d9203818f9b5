"""Finished jobs of full fine-tuning, whose deltas hold every tuned weight of the backbone.

Tuned weights are read a tensor at a time. No more than two models are in memory: the pretrained weights, and the
network into which tuned ones are put. A method's own selection of weights needs as much as it does before training.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from peftbench.analysis.steps import Facts, Steps
from peftbench.core.contract import Labels, Logits, Preprocessing, Result
from peftbench.core.recipe import Recipe
from peftbench.core.record import Record
from peftbench.core.spec import Places
from peftbench.data import pixel_cache
from peftbench.data.batches import ImageBatches
from peftbench.data.pixel_cache import Data
from peftbench.errors import DeltaError, RequestError
from peftbench.models import backbone, delta, top_k
from peftbench.models.backbone import Network, Source
from peftbench.models.gradient_probe import GradientProbe
from peftbench.models.head import Classifier
from peftbench.profiling.hardware import PRECISIONS
from peftbench.results import summary
from peftbench.results.store import JobFolder
from peftbench.results.summary import Block, MethodRow
from peftbench.training import trainee
from peftbench.training.job import probe_cache
from peftbench.training.loop import predict

FULL = "full"  # the method whose deltas hold all weights
SHARES = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of the backbone's weights, in every analysis
Entries: TypeAlias = Iterable[tuple[str, Tensor]]  # tensor -> flat indices; a tensor may be left out
Read: TypeAlias = Callable[[str], Tensor]  # name in a delta -> tensor
Levels: TypeAlias = Mapping[
    str, Tensor
]  # tensor -> uint8 (n,): position in SHARES of the first share that has the entry


def counts(size: int) -> list[int]:
    """Return how many of `size` weights each of SHARES is, at least one."""
    return [max(1, round(share * size)) for share in SHARES]


@dataclass(frozen=True, eq=False)
class FullJob:
    """A finished job of full fine-tuning."""

    result: Result
    places: Places
    steps: Steps

    @property
    def record(self) -> Record:
        """The record, with a name of the data set that may be published."""
        return self.result.record

    @property
    def name(self) -> str:
        """Data set and seed."""
        return f"{self.record.data.name}, seed {self.record.seed}"

    @property
    def facts(self) -> Facts:
        """What decides every result of this job: its id and the digest of its delta."""
        return {"job": self.record.id, "delta": self.record.files.get("delta.safetensors", "")}

    @property
    def size(self) -> int:
        """Number of weights of the backbone."""
        return self.record.backbone.parameters

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.record.data.name

    @property
    def test(self) -> tuple[Logits, Labels, tuple[int, ...]]:
        """Stored logits, labels and groups of the test part."""
        return self.result.predictions(self.record.rule)

    # --- the models ---

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """The facts of the delta. Raises DeltaError if it is not the one that the record was written for."""
        about = delta.read_about(self.result.folder)
        if about["sha256"] != self.facts["delta"]:
            raise DeltaError(f"The delta of job {self.record.id} does not match its record; run the job again.")
        return about

    @cached_property
    def source(self) -> Source:
        """The backbone with its file of weights."""
        return backbone.locate(self.about["backbone"], self.about["image_size"], self.places.weights)

    @contextmanager
    def tuned(self) -> Iterator[Read]:
        """Yield a function that reads a tensor of the delta. Raises DeltaError for one made for other weights."""
        with delta.open_tuned(self.result.folder, self.source.digest(0)) as read:
            yield read

    def pretrained(self) -> Network:
        """Return the pretrained backbone on the device, set up as the job ran it."""
        vit = self.source.build(self.record.seed)
        backbone.choose_attention(vit, self.places.device, self._autocast)
        return vit.to(self.places.device).eval()

    @property
    def _autocast(self) -> torch.dtype | None:
        return PRECISIONS[self._recipe.precision]

    @cached_property
    def _recipe(self) -> Recipe:
        return Recipe.restored(self.record.recipe)

    @cached_property
    def _data(self) -> Data:
        return pixel_cache.open_prepared(self.record.data.fingerprint, self._preprocessing, self.places.cache)

    @property
    def _preprocessing(self) -> Preprocessing:
        return Preprocessing.restored(self.record.backbone.preprocessing)

    def probe(self, vit: Network) -> GradientProbe:
        """Return gradients at the pretrained weights, as the methods of this job's study see them before training."""
        device = self.places.device
        model = trainee.make_classifier(vit, len(self._data.card.classes), self._recipe, self.record.seed).to(device)
        task = trainee.make_task(self._data, self._preprocessing, device, ())
        identity = json.loads(JobFolder(self.result.folder).request_file.read_bytes())["identity"]
        cache = probe_cache(identity, self._recipe, self.places)
        return trainee.make_probe(model, task, self._recipe, self.record.seed, cache)

    # --- how far weights moved ---

    def moved(self, vit: Network, read: Read) -> Iterator[tuple[str, Tensor]]:
        """Yield how far each weight of a tensor moved, |tuned - pretrained|, flat, a tensor at a time."""
        for name, pretrained in vit.named_parameters():
            yield name, (read(f"tune/{name}") - pretrained.detach().cpu()).abs().flatten()

    def moved_levels(self) -> Levels:
        """Return for every weight the first of SHARES whose most-moved weights include it."""
        return self.steps.tensors("moved", {**self.facts, "shares": SHARES}, self._moved_levels)

    def _moved_levels(self) -> dict[str, Tensor]:
        vit = self.source.build(self.record.seed)
        with self.tuned() as read:
            flat, filled = torch.empty(self.size), 0
            for _, moved in self.moved(vit, read):
                flat[filled : filled + len(moved)] = moved
                filled += len(moved)
            cutoffs = top_k.cutoffs(flat, counts(self.size))
            del flat
            return dict(levels(vit, lambda number: top_k.select(self.moved(vit, read), cutoffs[number])))

    # --- a network with some tuned weights ---

    @contextmanager
    def mixed(self) -> Iterator[Mixed]:
        """Yield the pretrained network with the tuned head, into which tuned weights can be put."""
        vit = self.pretrained()
        with self.tuned() as read, torch.no_grad():
            head = delta.restore_head(vit.num_features, self.about, lambda name: read(f"head/{name}"))
            own = {name: tensor.detach().cpu().clone() for name, tensor in vit.named_parameters()}
            images = ImageBatches(self._data.pixels("test"), self._preprocessing, torch.device(self.places.device))
            yield Mixed(Classifier(vit, head.to(self.places.device)).eval(), own, read, images, self._autocast)


@dataclass(frozen=True, eq=False)
class Mixed:
    """A classifier whose head is the tuned one and whose backbone is the pretrained one with some tuned weights."""

    classifier: Classifier
    pretrained: Mapping[str, Tensor]
    read: Read
    images: ImageBatches  # of the test part
    autocast: torch.dtype | None

    def logits(self, entries: Entries) -> Logits:
        """Return the test logits (n, classes) with the tuned values at `entries` and pretrained ones elsewhere."""
        weights = dict(self.classifier.vit.named_parameters())
        for name, weight in weights.items():
            weight.copy_(self.pretrained[name])
        for name, index in entries:
            value = self.pretrained[name].flatten().clone()
            value[index] = self.read(f"tune/{name}").flatten()[index]
            weights[name].copy_(value.view(weights[name].shape))
        return predict(self.classifier, self.images, self.autocast)

    def everything(self) -> Entries:
        """Yield all entries of all tensors."""
        return ((name, torch.arange(tensor.numel())) for name, tensor in self.pretrained.items())


def levels(vit: Network, entries: Callable[[int], Entries]) -> dict[str, Tensor]:
    """Return for every weight the position in SHARES of the first share that selects it, len(SHARES) for none.

    `entries` returns the selection of the share at a position; a larger share holds the smaller ones.
    """
    none = len(SHARES)
    found = {name: torch.full((p.numel(),), none, dtype=torch.uint8) for name, p in vit.named_parameters()}
    for number in reversed(range(none)):
        for name, index in entries(number):
            found[name][index] = number
    return found


def at_level(found: Levels, number: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the entries that the share at position `number` of SHARES selects."""
    for name, level in found.items():
        yield name, (level <= number).nonzero().flatten()


# --- the jobs of a store ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FullSeries:
    """The full jobs of one backbone, image size and recipe, whose weights can be compared."""

    block: Block
    row: MethodRow
    jobs: tuple[FullJob, ...]  # by data set, then seed
    missing: tuple[str, ...]  # what is missing, in sentences

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that begin every row of a CSV file."""
        setting = self.block.setting
        return {
            "backbone": setting.backbone,
            "image_size": setting.size,
            "recipe": setting.recipe,
            "method": self.row.name,
        }

    @property
    def title(self) -> str:
        """Backbone, image size, recipe and method."""
        setting = self.block.setting
        return f"{setting.network} · recipe {setting.recipe} · {self.row.name}"

    @property
    def datasets(self) -> Mapping[str, Sequence[FullJob]]:
        """The jobs of each data set."""
        found: dict[str, list[FullJob]] = defaultdict(list)
        for job in self.jobs:
            found[job.dataset].append(job)
        return found

    def label(self, dataset: str) -> str:
        """Return a data set's name, with a note if its images are drawn."""
        return dataset + (" (synthetic)" if self.block.synthetic(dataset) else "")


def find_series(results: Sequence[Result], places: Places) -> list[FullSeries]:
    """Return the full jobs of a store whose deltas are there, by setting.

    Raises RequestError, with what is missing, if there is none.
    """
    steps, missing = Steps(places.store / "analysis"), list[str]()
    found = []
    for block in summary.summarize(results):
        for row in block.rows:
            if row.records[0].method.name == FULL and not row.records[0].backbone.random:
                series = _series(block, row, places, steps)
                found += [series] if series.jobs else []
                missing += series.missing
    if not found:
        why = " ".join(missing) or "The store holds no finished job of full fine-tuning."
        raise RequestError(f"{why} `peftbench run --methods full`, with the options of your study, makes such jobs.")
    return found


def _series(block: Block, row: MethodRow, places: Places, steps: Steps) -> FullSeries:
    jobs, missing = list[FullJob](), list[str]()
    for name in block.datasets:
        if name not in row.replicates:
            continue
        for result in sorted(row.replicates[name].done + row.replicates[name].failed, key=lambda one: one.record.seed):
            if problem := _problem(result):
                missing.append(f"{name}, seed {result.record.seed}: {problem}")
            else:
                jobs.append(FullJob(result, places, steps))
    seeds = {name: {job.record.seed for job in jobs if job.dataset == name} for name in block.datasets}
    few = [name for name, found in seeds.items() if len(found) == 1]
    if few:
        missing.append(
            f"One seed only ({', '.join(few)}): the variance between seeds is not covered; "
            "`--seeds 0,1,2` adds the others."
        )
    if jobs and len({job.dataset for job in jobs}) == 1:
        missing.append("One data set only: nothing is known about other tasks; `--datasets` adds them.")
    return FullSeries(block, row, tuple(jobs), tuple(missing))


def _problem(result: Result) -> str:
    """Return why a job cannot be analyzed, as a report may print it; empty if it can."""
    record = result.record
    if record.status == "failed":
        return f"the job failed ({summary.failure(result)})."
    if not all((result.folder / name).is_file() for name in ("delta.safetensors", "delta.json")):
        return f"the delta of job {record.id} was deleted; move the job's folder away and run the study again."
    if not record.data.sizes.get("test", 0) or not result.has_predictions:
        return f"job {record.id} has no test images or no stored predictions."
    return f"job {record.id} is damaged: {result.damage}." if result.damage else ""
