"""Decide which jobs may be averaged: jobs that differ in their seed or data set and in nothing that a user chose.

A tuned learning rate or field may differ between data sets and seeds; one that was given may not.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from peftbench.core.contract import Result
from peftbench.core.record import WHOLE, Record

Jobs = list[Result]


def rows(results: Iterable[Result]) -> Iterator[tuple[str, Mapping[str, Jobs]]]:
    """Yield the rows of one setting: a mark, and the jobs of each data set with every seed once.

    Jobs of one label and budget that differ in anything else make several rows, marked ` #2`, ` #3` and so on.
    """
    named: dict[tuple[str, int | None], Jobs] = defaultdict(list)
    for result in sorted(results, key=lambda one: (one.record.seed, one.record.id)):
        budget = result.record.budget
        named[result.record.label, budget.target if budget else None].append(result)
    for jobs in named.values():
        found = [by_dataset for equal in _grouped(jobs, _chosen) for by_dataset in _by_data(equal)]
        for number, by_dataset in enumerate(found, 1):
            yield f" #{number}" if number > 1 else "", by_dataset


def _by_data(jobs: Jobs) -> Iterator[dict[str, Jobs]]:
    """Yield the jobs of each data set, several times if data sets of one name had different images."""
    cut: dict[str, list[Jobs]] = {}
    for part in _grouped(jobs, lambda record: record.data.name):
        cut[part[0].record.data.name] = [
            one for equal in _grouped(part, _images) for one in _separate(equal, DISTINGUISHING)
        ]
    for row in zip_longest(*cut.values()):
        yield {name: jobs for name, jobs in zip(cut, row, strict=True) if jobs}


def _separate(jobs: Jobs, keys: Sequence[Callable[[Record], str]]) -> list[Jobs]:
    """Return lists of jobs in which each seed occurs once, split by as few of the keys as needed."""
    if len({job.record.seed for job in jobs}) == len(jobs):
        return [jobs]
    return [one for part in _grouped(jobs, keys[0]) for one in _separate(part, keys[1:])]


def _grouped(jobs: Jobs, key: Callable[[Record], str]) -> list[Jobs]:
    """Return the jobs grouped by a key, in the order of the key."""
    found: dict[str, Jobs] = defaultdict(list)
    for job in jobs:
        found[key(job.record)].append(job)
    return [found[text] for text in sorted(found)]


def _chosen(record: Record) -> str:
    """Return what must be equal over data sets and seeds; the number of steps may depend on the data set."""
    tuned = ("optimiser", "momentum", "weight_decay") if record.tuning and record.tuning.optimizers else ()
    recipe = {k: v for k, v in record.recipe.items() if k not in ("lr", "steps", "stop", *tuned)}
    given = record.tuning is None and record.data.sizes.get("val")
    rate = record.recipe["lr"] if given else None  # without validation it was the middle of the others' grid
    settings = record.tuning.settings if record.tuning else []
    searched = {name for setting in settings for name in setting}
    fields = {name: value for name, value in record.method.fields.items() if name not in searched}
    method = [record.method.version, fields]
    weights = "" if record.backbone.random else record.backbone.digest
    return json.dumps([rate, record.threads, method, weights, recipe], sort_keys=True, default=str)


def _images(record: Record) -> str:
    """Return what must be equal over the seeds of one data set, which may split it differently: images per class.

    Counts are left out for a share of the images, as each seed takes others.
    """
    counts = [sum(of_class) for of_class in zip(*record.data.balance.values(), strict=True)]
    return json.dumps([record.recipe.get("steps"), counts if record.data.variant == WHOLE else None])


DISTINGUISHING: Sequence[Callable[[Record], str]] = (
    lambda record: record.data.fingerprint,
    lambda record: f"{record.recipe['lr']:.17g}",
    lambda record: record.id,
)
