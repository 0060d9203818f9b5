"""From jobs to what can be compared: settings, rows of one method each, and in each row an entry a data set.

Only jobs of one setting (backbone, image size, recipe) share a table. Jobs of one method, budget and data set that
differ in their seed are one entry; whatever else they differ in makes a row of its own, never a silent average.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np

from peftbench.core.contract import INCOMPLETE, Result
from peftbench.core.recipe import Recipe
from peftbench.core.record import Cut, Record
from peftbench.errors import StoreError
from peftbench.results import grouping
from peftbench.statistics import bootstrap
from peftbench.storage.archives import DAMAGE

PAPER = ("covid_ct", "busi", "chest_xray", "chaoyang", "oct", "limuc")
BASELINES = ("majority", "linear")
TUNED_BY_DESIGN = ("quick", "paper", "official")  # recipes that say every method's learning rate themselves


@dataclass(frozen=True)
class Setting:
    """What all rows of one table have in common."""

    backbone: str  # the random-weight rows stand beside those of the same network
    size: int  # pixels
    recipe: str
    selection: str  # the recipe's rule: validation or last
    fields: str  # JSON of the recipe's other values but the learning rate; of `official` none: there methods differ

    @classmethod
    def of(cls, record: Record) -> Setting:
        """The setting a job belongs to."""
        recipe = {**Recipe().stored(), **record.recipe}  # a field newer than the record had its default then
        name, selection = str(recipe.pop("name", "custom")), str(recipe.pop("selection"))
        others = {} if name == "official" else {k: v for k, v in recipe.items() if k not in ("lr", "label")}
        backbone = record.backbone.name.replace("@random", "")
        size = int(record.backbone.preprocessing["size"])
        return cls(backbone, size, name, selection, json.dumps(others, sort_keys=True, default=str))

    @property
    def short(self) -> str:
        """Backbone and image size."""
        return f"{self.backbone}, {self.size} px"

    @property
    def network(self) -> str:
        """The same, where the built-in backbone is said to be none of the paper's."""
        return self.short + (": not the paper's backbone" if self.backbone == "mini" else "")


@dataclass(frozen=True, eq=False)
class Entry:
    """One row's jobs on one data set: its seeds."""

    done: tuple[Result, ...]
    failed: tuple[Result, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        """Of the jobs that finished."""
        return tuple(result.record for result in self.done)

    def score(self, metric: str, rule: str = "") -> float:
        """Mean over seeds of a test metric in 0..1, under the recipe's rule or another; nan where any is undefined."""
        return statistics.fmean(self._scores(metric, rule)) if self.done else math.nan

    def spread(self, metric: str) -> float:
        """Standard deviation over seeds; nan with fewer than two."""
        values = self._scores(metric, "")
        return statistics.stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else math.nan

    @cached_property
    def f1(self) -> bootstrap.Estimate:
        """Macro F1 with its bootstrap draws; none where the predictions were not kept beside the records."""
        try:
            runs = [_run(result) for result in self.done]
            if len(self._tests) > 1:
                return bootstrap.overlapping([bootstrap.estimate([run]) for run in runs])
            return bootstrap.estimate(runs)
        except FileNotFoundError:
            return bootstrap.Estimate(self.score("macro_f1"), np.empty(0), 0)

    def less(self, other: Entry) -> bootstrap.Estimate | None:
        """This macro F1 less another's, resampled together; None unless both were scored on the same test images."""
        tests = {record.data.test for record in self.records + other.records}
        if len(tests) > 1 or "" in tests:
            return None
        try:
            return bootstrap.difference([_run(job) for job in self.done], [_run(job) for job in other.done])
        except FileNotFoundError:
            return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about these jobs, beginning with what is missing."""
        found = [_missing(self), *(note for record in self.records for note in notes(record))]
        if len(self._tests) > 1:
            found.append("test sets differ between seeds")
        return tuple(dict.fromkeys(note for note in found if note))

    @property
    def _tests(self) -> set[str]:
        return {record.data.test or record.data.fingerprint for record in self.records}

    def _scores(self, metric: str, rule: str) -> list[float]:
        return [value(record, rule or record.rule, metric) for record in self.records]


@dataclass(frozen=True, eq=False)
class Row:
    """One method, as configured, at one budget."""

    label: str
    target: int | None  # trainable parameters asked for, head excluded
    baseline: bool
    entries: Mapping[str, Entry]  # by data set; not every row has all

    @property
    def on_official(self) -> str:
        """Its label as if it had used the official parts: rows of one name differ in nothing else."""
        record = self.jobs[0].record
        return self.label.replace(record.label, record.labelled(replace(record.data.variant, splits="official")))

    @property
    def records(self) -> tuple[Record, ...]:
        """Of all its jobs."""
        return tuple(job.record for job in self.jobs)

    @property
    def jobs(self) -> tuple[Result, ...]:
        """Failed ones included."""
        return tuple(job for entry in self.entries.values() for job in entry.done + entry.failed)

    def estimate(self, datasets: Sequence[str]) -> bootstrap.Estimate | None:
        """Macro F1 averaged over data sets; None unless every one of them is there."""
        entries = [self.entries[name] for name in datasets if name in self.entries and self.entries[name].done]
        return bootstrap.average([entry.f1 for entry in entries]) if len(entries) == len(datasets) else None

    def mean(self, metric: str, datasets: Sequence[str]) -> float:
        """A test metric averaged over data sets; nan unless every one has it."""
        missing = [name for name in datasets if name not in self.entries]
        return math.nan if missing else statistics.fmean(self.entries[name].score(metric) for name in datasets)


@dataclass(frozen=True, eq=False)
class Block:
    """Everything of one setting."""

    setting: Setting
    datasets: tuple[str, ...]  # the paper's first and in its order, synthetic ones last
    rows: tuple[Row, ...]  # baselines first

    @property
    def results(self) -> tuple[Result, ...]:
        """All its jobs."""
        return tuple(job for row in self.rows for job in row.jobs)

    @cached_property
    def records(self) -> Mapping[str, Record]:
        """One job's record for each data set, for what is known of the data."""
        records = [result.record for result in self.results]
        return {record.data.name: record for record in sorted(records, key=lambda record: record.status == "done")}

    def synthetic(self, dataset: str) -> bool:
        """Drawn, not photographed."""
        return bool(self.records[dataset].data.card.get("synthetic"))

    def averages(self) -> dict[str, tuple[str, ...]]:
        """Title -> data sets that are averaged: the paper's, the synthetic ones and all others apart, never of one."""
        paper = tuple(name for name in self.datasets if name in PAPER)
        synthetic = tuple(name for name in self.datasets if name not in PAPER and self.synthetic(name))
        others = tuple(name for name in self.datasets if name not in paper + synthetic)
        titles = {
            "average" if len(paper) == len(PAPER) else f"average ({len(paper)} of {len(PAPER)})": paper,
            f"average of {len(others)} others": others,
            f"average of {len(synthetic)} synthetic": synthetic,
        }
        return {title: names for title, names in titles.items() if len(names) > 1}


def summarise(results: Iterable[Result]) -> list[Block]:
    """Group final jobs into blocks; trials are left out."""
    settings: dict[Setting, list[Result]] = defaultdict(list)
    for result in results:
        if result.record.role == "final":
            settings[Setting.of(result.record)].append(result)
    return [_block(setting, settings[setting]) for setting in sorted(settings, key=repr)]


def _block(setting: Setting, results: list[Result]) -> Block:
    drawn = {result.record.data.name for result in results if result.record.data.card.get("synthetic")}
    datasets = {result.record.data.name for result in results}
    order = sorted(datasets, key=lambda name: (name in drawn, _place(name, PAPER), name))
    rows = [_row(entries, mark) for mark, entries in grouping.rows(results)]
    return Block(setting, tuple(order), tuple(sorted(rows, key=_order)))


def _place(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)


def _order(row: Row) -> tuple[object, ...]:
    """Baselines from the least to the most, full tuning, then the methods by name and budget, then what they saw."""
    record, first = row.jobs[0].record, ("majority", "linear (random weights)", "linear", "full")
    seen, plain = record.data.variant, record.plain_label
    data = (get_args(Cut).index(seen.splits), seen.shots or math.inf, seen.share)
    return (not row.baseline, _place(plain, first), plain, row.target or 0, *data, row.label)


def _row(entries: Mapping[str, list[Result]], mark: str) -> Row:
    first = next(iter(entries.values()))[0].record
    target = first.budget.target if first.budget else None
    return Row(first.label + mark, target, first.method.name in BASELINES, {k: _entry(v) for k, v in entries.items()})


def _entry(jobs: list[Result]) -> Entry:
    done = tuple(job for job in jobs if job.record.status == "done")
    return Entry(done, tuple(job for job in jobs if job.record.status == "failed"))


# --- one job -------------------------------------------------------------------------------------------------------


def value(record: Record, rule: str, metric: str) -> float:
    """A test metric in 0..1 at a rule's step; nan where there is none."""
    found = record.choices[rule].test.get(metric) if rule in record.choices else None
    return math.nan if found is None else found


def untuned(record: Record) -> bool:
    """Its learning rate was neither searched for nor given for this method by its recipe."""
    given = record.method.name == "majority" or record.recipe.get("name") in TUNED_BY_DESIGN
    return record.tuning is None and not given


def notes(record: Record) -> list[str]:
    """Of one job: data that are not whole, untuned, without validation, and what the run noted."""
    asked = record.recipe["selection"] == record.rule
    partial = [note for note in record.data.notes if note.startswith(INCOMPLETE)]
    found = [*partial, "untuned" if untuned(record) else "", "" if asked else "no validation part: last step"]
    return [note for note in found if note] + [public(note) for note in record.notes]


def share(record: Record) -> float:
    """Trained parameters, head excluded, over those of the backbone; nan for a job that failed before it counted."""
    return record.counts.trainable / record.backbone.parameters if record.counts else math.nan


_QUOTED = re.compile(r"""(?<!\w)(['"])[^'"]+\1""")
_FILE = re.compile(r"\S*[^\s.:]\.(?:png|jpe?g|bmp|tiff?|gif|webp|dcm|nii(?:\.gz)?)\b", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\][^\s,;:'\"()]+")


def public(text: str) -> str:
    """A reason or note as a report may print it: without quoted names and files, which may name a patient."""
    return _PATH.sub("[path]", _FILE.sub("[image]", _QUOTED.sub("[name]", text)))


def _missing(entry: Entry) -> str:
    jobs = len(entry.done) + len(entry.failed)
    return f"{len(entry.failed)} of {jobs} seeds failed" if entry.failed and jobs > 1 else ""


def _run(result: Result) -> bootstrap.Run:
    try:
        return result.predictions(result.record.rule)
    except FileNotFoundError:
        raise
    except (*DAMAGE, OSError, RuntimeError) as error:
        raise StoreError(
            f"The predictions in {result.folder} cannot be read ({type(error).__name__}); "
            "move that folder away and run the study again."
        ) from None
