"""Group jobs for comparison: blocks of one setting, in them rows of one method, in each row replicates per data set.

Only jobs of one setting (backbone, image size, recipe) share a table. Jobs of one method, budget and data set that
differ only in their seed are replicates and are averaged; any other difference makes another row.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import get_args

import numpy as np

from peftbench.core import presets
from peftbench.core.constants import BASELINES, PAPER_DATASETS, RANDOM_WEIGHTS
from peftbench.core.contract import INCOMPLETE, Result
from peftbench.core.recipe import RECIPES, Recipe
from peftbench.core.record import Cut, Record
from peftbench.core.syntax import without_random
from peftbench.results import grouping
from peftbench.results.redaction import redact
from peftbench.statistics import bootstrap
from peftbench.statistics.by_group import by_group
from peftbench.statistics.paired import Jackknife, Score, jackknife

TUNED_BY_DESIGN = ("quick", "paper", "official")  # recipes that say every method's learning rate themselves


@dataclass(frozen=True)
class Setting:
    """What all jobs of one table have in common."""

    backbone: str  # pretrained and random weights of one network share a table
    size: int  # pixels
    recipe: str
    selection: str  # the recipe's selection rule: validation or last
    fields: (
        str  # JSON of the recipe's other values without the learning rate; empty for `official`: there methods differ
    )

    @classmethod
    def of(cls, record: Record) -> Setting:
        """Return the setting of a job."""
        recipe = {**Recipe().stored(), **record.recipe}  # fields that are newer than the record had their default
        name, selection = str(recipe.pop("name", "custom")), str(recipe.pop("selection"))
        if record.tuning and record.tuning.optimizers and name in RECIPES:  # the methods' optimizers may differ
            own = RECIPES[name].stored()
            recipe |= {key: own[key] for key in ("optimiser", "momentum", "weight_decay")}
        others = {} if name == "official" else {k: v for k, v in recipe.items() if k not in ("lr", "label", "stop")}
        backbone = without_random(record.backbone.name)
        size = int(record.backbone.preprocessing["size"])
        return cls(backbone, size, name, selection, json.dumps(others, sort_keys=True, default=str))

    @property
    def short(self) -> str:
        """Return backbone and image size."""
        return f"{self.backbone}, {self.size} px"

    @property
    def network(self) -> str:
        """Return backbone and image size, with a note if the backbone is not the paper's."""
        return self.short + (": not the paper's backbone" if self.backbone == "mini" else "")


def pretraining_overlap(record: Record) -> str:
    """Return why the pretraining of a job's backbone may have seen its test images; "" if that is not known."""
    if record.backbone.random:
        return ""
    return record.backbone.overlap or presets.overlap(record.backbone.name, record.data.name, own=False)


@dataclass(frozen=True, eq=False)
class Replicates:
    """Jobs of one method, budget and data set that differ only in their seed."""

    done: tuple[Result, ...]
    failed: tuple[Result, ...]  # damaged ones included

    @classmethod
    def of(cls, jobs: Sequence[Result]) -> Replicates:
        """Return the jobs, those without a usable score apart."""
        done = tuple(job for job in jobs if job.record.status == "done" and not job.damage)
        return cls(done, tuple(job for job in jobs if job not in done))

    @property
    def records(self) -> tuple[Record, ...]:
        """Return the records of the finished jobs."""
        return tuple(result.record for result in self.done)

    def mean(self, metric: str, rule: str = "") -> float:
        """Return the mean over seeds of a test metric in 0..1 under a selection rule, by default the recipe's.

        nan if it is undefined for any seed.
        """
        return statistics.fmean(self._scores(metric, rule)) if self.done else math.nan

    def spread(self, metric: str) -> float:
        """Return the standard deviation over seeds of a test metric; nan for fewer than two seeds."""
        values = self._scores(metric, "")
        return statistics.stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else math.nan

    @cached_property
    def f1(self) -> bootstrap.Estimate:
        """Macro F1 with its bootstrap draws; without draws where predictions are missing."""
        if not self.have_predictions:
            return bootstrap.Estimate(self.mean("macro_f1"), np.empty(0), 0)
        runs = list(self.runs.values())
        if len(self._tests) > 1:
            return bootstrap.overlapping([bootstrap.estimate([run]) for run in runs])
        return bootstrap.estimate(runs)

    @cached_property
    def group_runs(self) -> tuple[bootstrap.Predictions, ...]:
        """Predictions per group of each seed; empty where no group has two images or nothing is stored."""
        if not self.have_predictions or all(len(set(run[2])) == len(run[2]) for run in self.runs.values()):
            return ()
        return tuple(run for run in map(by_group, self.runs.values()) if len(run[1]))

    def difference(self, other: Replicates) -> bootstrap.Estimate | None:
        """Return this macro F1 minus another, resampled together; None unless both have the same test images."""
        tests = {record.data.test for record in self.records + other.records}
        if len(tests) > 1 or "" in tests or not (self.have_predictions and other.have_predictions):
            return None
        return bootstrap.difference(list(self.runs.values()), list(other.runs.values()))

    @cached_property
    def runs(self) -> Mapping[int, bootstrap.Predictions]:
        """Stored test predictions by seed, at the step that the recipe's rule chose; read once for a whole report."""
        return {result.record.seed: result.predictions(result.record.rule) for result in self.done}

    @property
    def positive(self) -> int:
        """Label of the positive class of two."""
        return self.records[0].data.positive_index if self.done else 1

    def jackknives(self, metric: str, score: Score | None = None) -> dict[int, Jackknife]:
        """Return the runs by seed, scored without each group in turn; `score` computes a plug-in's metric."""
        tests = {record.seed: _test(record) for record in self.records}
        return {seed: jackknife(run, metric, score, tests[seed]) for seed, run in self.runs.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a reader must know about these jobs: first what is missing, then the notes of each job."""
        found = [_missing(self), *(note for record in self.records for note in notes(record))]
        if len(self._tests) > 1:
            found.append("test sets differ between seeds")
        if any(not record.data.sizes.get("test", 1) for record in self.records):
            found.append("no test images")
        elif self.done and not self.have_predictions:
            found.append("predictions not stored: no interval")
        return tuple(dict.fromkeys(note for note in found if note))

    @cached_property
    def have_predictions(self) -> bool:
        """Whether the predictions of all finished jobs are stored."""
        return all(result.has_predictions for result in self.done)

    @property
    def _tests(self) -> set[str]:
        return {_test(record) for record in self.records}

    def _scores(self, metric: str, rule: str) -> list[float]:
        return [test_score(record, rule or record.rule, metric) for record in self.records]


@dataclass(frozen=True, eq=False)
class MethodRow:
    """One method, as configured, at one budget."""

    label: str
    target: int | None  # requested trainable parameters, head excluded
    baseline: bool
    replicates: Mapping[str, Replicates]  # by data set; a row may lack some of them

    @property
    def name(self) -> str:
        """Return the label with its budget as a share of the backbone, which no other row of a setting has."""
        if self.target is None:
            return self.label
        return f"{self.label} @ {100 * self.target / self.records[0].backbone.parameters:.3g}%"

    @property
    def on_official(self) -> str:
        """Return the label with official splits: rows of the same one differ in their splits only."""
        record = self.jobs[0].record
        return self.label.replace(record.label, record.labeled(replace(record.data.variant, splits="official")))

    @property
    def records(self) -> tuple[Record, ...]:
        """Return the records of all jobs of the row."""
        return tuple(job.record for job in self.jobs)

    @property
    def jobs(self) -> tuple[Result, ...]:
        """Return all jobs of the row, failed ones included."""
        return tuple(job for found in self.replicates.values() for job in found.done + found.failed)

    def estimate(self, datasets: Sequence[str]) -> bootstrap.Estimate | None:
        """Return macro F1 averaged over data sets; None unless the row has all of them."""
        found = [self.replicates[name] for name in datasets if name in self.replicates and self.replicates[name].done]
        return bootstrap.average([one.f1 for one in found]) if len(found) == len(datasets) else None

    def mean(self, metric: str, datasets: Sequence[str]) -> float:
        """Return a test metric averaged over data sets; nan unless all of them have it."""
        missing = [name for name in datasets if name not in self.replicates]
        return math.nan if missing else statistics.fmean(self.replicates[name].mean(metric) for name in datasets)


@dataclass(frozen=True, eq=False)
class Block:
    """All jobs of one setting."""

    setting: Setting
    datasets: tuple[str, ...]  # the paper's first and in its order, synthetic ones last
    rows: tuple[MethodRow, ...]  # baselines first

    @property
    def results(self) -> tuple[Result, ...]:
        """Return all jobs of the block."""
        return tuple(job for row in self.rows for job in row.jobs)

    @cached_property
    def records(self) -> Mapping[str, Record]:
        """Records of one job per data set, a finished one if there is one, for the facts about the data."""
        records = [result.record for result in self.results]
        return {record.data.name: record for record in sorted(records, key=lambda record: record.status == "done")}

    def synthetic(self, dataset: str) -> bool:
        """Return whether the images of a data set are drawn, not photographed."""
        return bool(self.records[dataset].data.card.get("synthetic"))

    def overlaps(self, names: Sequence[str]) -> dict[str, str]:
        """Return data set -> why the backbone's pretraining may have seen its test images, where that is known."""
        records = [result.record for result in self.results]
        found = {record.data.name: reason for record in records if (reason := pretraining_overlap(record))}
        return {name: found[name] for name in names if name in found}

    def averages(self) -> dict[str, tuple[str, ...]]:
        """Return title -> data sets to average: the paper's, the synthetic and the others apart, and none of one."""
        paper = tuple(name for name in self.datasets if name in PAPER_DATASETS)
        synthetic = tuple(name for name in self.datasets if name not in PAPER_DATASETS and self.synthetic(name))
        others = tuple(name for name in self.datasets if name not in paper + synthetic)
        titles = {
            "average"
            if len(paper) == len(PAPER_DATASETS)
            else f"average ({len(paper)} of {len(PAPER_DATASETS)})": paper,
            f"average of {len(others)} others": others,
            f"average of {len(synthetic)} synthetic": synthetic,
        }
        return {title: names for title, names in titles.items() if len(names) > 1}


def summarize(results: Iterable[Result]) -> list[Block]:
    """Group final jobs into blocks; trials are left out. Blocks of the same results are made once."""
    return list(_summarize(tuple(results)))


@lru_cache(maxsize=1)  # each format of a report asks for the same blocks, whose intervals take most of its time
def _summarize(results: tuple[Result, ...]) -> tuple[Block, ...]:
    settings: dict[Setting, list[Result]] = defaultdict(list)
    for result in results:
        if result.record.role == "final":
            settings[Setting.of(result.record)].append(result)
    return tuple(_block(setting, settings[setting]) for setting in sorted(settings, key=repr))


def _block(setting: Setting, results: list[Result]) -> Block:
    drawn = {result.record.data.name for result in results if result.record.data.card.get("synthetic")}
    datasets = {result.record.data.name for result in results}
    order = sorted(datasets, key=lambda name: (name in drawn, _place(name, PAPER_DATASETS), name))
    rows = [_row(by_dataset, mark) for mark, by_dataset in grouping.rows(results)]
    return Block(setting, tuple(order), tuple(sorted(rows, key=_order)))


def _place(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)


def _order(row: MethodRow) -> tuple[object, ...]:
    """Return the sort key: baselines, full tuning, the other methods by name and budget, then by their data."""
    record, first = row.jobs[0].record, ("majority", "knn", f"linear{RANDOM_WEIGHTS}", "linear", "full")
    seen, plain = record.data.variant, record.plain_label
    data = (get_args(Cut).index(seen.splits), seen.shots or math.inf, seen.share)
    return (not row.baseline, _place(plain, first), plain, row.target or 0, *data, row.label)


def _row(by_dataset: Mapping[str, list[Result]], mark: str) -> MethodRow:
    first = next(iter(by_dataset.values()))[0].record
    target = first.budget.target if first.budget else None
    replicates = {name: Replicates.of(jobs) for name, jobs in by_dataset.items()}
    return MethodRow(first.label + mark, target, first.method.name in BASELINES, replicates)


# --- one job -------------------------------------------------------------------------------------------------------


def _test(record: Record) -> str:
    """Return the digest of the test images; records of version 0.1.0 only have one of all images."""
    return record.data.test or record.data.fingerprint


def test_score(record: Record, rule: str, metric: str) -> float:
    """Return a test metric in 0..1 at the step that a selection rule chose; nan if undefined."""
    found = record.choices[rule].test.get(metric) if rule in record.choices else None
    return math.nan if found is None else found


def untuned(record: Record) -> bool:
    """Return whether the learning rate was neither tuned nor set for this method by the recipe."""
    given = not record.has_learning_rate or record.recipe.get("name") in TUNED_BY_DESIGN
    return record.tuning is None and not given


def notes(record: Record) -> list[str]:
    """Return the notes of one job: incomplete data, no tuning, no validation part, and those of the record."""
    as_requested = record.recipe["selection"] == record.rule
    partial = [note for note in record.data.notes if note.startswith(INCOMPLETE)]
    found = [*partial, "untuned" if untuned(record) else "", "" if as_requested else "no validation part: last step"]
    if record.tuning:
        found += [f"{record.tuning.edge} learning rate tried" if record.tuning.edge else ""]
        searched = dict.fromkeys(name for setting in record.tuning.settings for name in setting)
        found += [f"{name} tuned: {record.method.fields[name]}" for name in searched]
        found += ["trained on train and val" if record.tuning.refit else ""]
    return [note for note in found if note] + [redact(note) for note in record.notes]


def trainable_share(record: Record) -> float:
    """Return the trainable share: trainable over backbone parameters, head excluded; nan for a failed job."""
    return record.counts.trainable / record.backbone.parameters if record.counts else math.nan


def failure(result: Result) -> str:
    """Return why a job has no usable score, as a report may print it."""
    return result.damage or redact(result.record.reason)


def _missing(found: Replicates) -> str:
    """Return how many of several seeds are left out of the mean."""
    jobs = len(found.done) + len(found.failed)
    damaged = sum(job.record.status == "done" for job in found.failed)
    failed = len(found.failed) - damaged
    pieces = [f"{count} of {jobs} seeds {word}" for count, word in ((failed, "failed"), (damaged, "damaged")) if count]
    return ", ".join(pieces) if jobs > 1 else ""
