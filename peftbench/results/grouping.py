"""Which jobs may be averaged: those that differ in their seed, and over data sets, in nothing that somebody chose.

A learning rate that was looked for may differ from one data set or seed to the next; one that was given may not.
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
    """Jobs of one setting by what a table calls them and by data set, each seed once.

    Where jobs of one name and budget differ in anything else there are several rows; the mark (` #2`) tells them apart.
    """
    named: dict[tuple[str, int | None], Jobs] = defaultdict(list)
    for result in sorted(results, key=lambda one: (one.record.seed, one.record.id)):
        budget = result.record.budget
        named[result.record.label, budget.target if budget else None].append(result)
    for jobs in named.values():
        found = [entries for alike in _cut(jobs, _chosen) for entries in _by_data(alike)]
        for number, entries in enumerate(found, 1):
            yield f" #{number}" if number > 1 else "", entries


def _by_data(jobs: Jobs) -> Iterator[dict[str, Jobs]]:
    """One entry a data set, or several in a row where a data set of one name was not the same throughout."""
    cut: dict[str, list[Jobs]] = {}
    for part in _cut(jobs, lambda record: record.data.name):
        cut[part[0].record.data.name] = [one for alike in _cut(part, _images) for one in _settled(alike, TELLING)]
    for row in zip_longest(*cut.values()):
        yield {name: jobs for name, jobs in zip(cut, row, strict=True) if jobs}


def _settled(jobs: Jobs, keys: Sequence[Callable[[Record], str]]) -> list[Jobs]:
    """The jobs themselves, each seed once; where a seed is there twice, cut by the first key that tells, then on."""
    if len({job.record.seed for job in jobs}) == len(jobs):
        return [jobs]
    return [one for part in _cut(jobs, keys[0]) for one in _settled(part, keys[1:])]


def _cut(jobs: Jobs, key: Callable[[Record], str]) -> list[Jobs]:
    """By a key, in its order."""
    found: dict[str, Jobs] = defaultdict(list)
    for job in jobs:
        found[key(job.record)].append(job)
    return [found[text] for text in sorted(found)]


def _chosen(record: Record) -> str:
    """What must be equal over data sets and seeds. A step count may follow from the size of a data set."""
    recipe = {k: v for k, v in record.recipe.items() if k not in ("lr", "steps")}
    given = record.tuning is None and record.data.sizes.get("val")
    rate = record.recipe["lr"] if given else None  # without validation it was the middle of what others choose from
    method = [record.method.version, record.method.fields]
    weights = "" if record.backbone.random else record.backbone.digest
    return json.dumps([rate, record.threads, method, weights, recipe], sort_keys=True, default=str)


def _images(record: Record) -> str:
    """What must be equal over the seeds of one data set, which may cut it differently: its images of each class.

    Of a part of the images each seed takes others.
    """
    counts = [sum(of_class) for of_class in zip(*record.data.balance.values(), strict=True)]
    return json.dumps([record.recipe.get("steps"), counts if record.data.variant == WHOLE else None])


TELLING: Sequence[Callable[[Record], str]] = (
    lambda record: record.data.fingerprint,
    lambda record: f"{record.recipe['lr']:.17g}",
    lambda record: record.id,
)
