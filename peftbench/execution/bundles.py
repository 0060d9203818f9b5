"""Bundles: jobs that one task of a cluster runs one after the other, as long as a target length by the forecast."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TypeVar

from peftbench.core.spec import Job, Places
from peftbench.core.syntax import without_random
from peftbench.profiling import hardware, history

T = TypeVar("T")


def forecasts(jobs: Sequence[Job], places: Places) -> list[float | None]:
    """Return the seconds of training of each job; None where `peftbench measure` was not run on this machine."""
    if places.device == "cuda" and not hardware.gpus():
        return [None] * len(jobs)
    known: dict[str, float | None] = {}  # images per second

    def seconds(job: Job) -> float | None:
        used = (job.method, job.version, dict(job.fields))
        size, threads = job.preprocessing.size, job.threads or 1
        key = history.cost_key(without_random(job.backbone), size, used, places.device, threads, job.recipe)
        if (name := str(key)) not in known:
            found = history.recall(places.cache, key)
            known[name] = found.images_per_second if found else None
        rate = known[name]
        return job.recipe.steps * job.recipe.batch / rate if rate else None

    return [seconds(job) for job in jobs]


def bundled(
    items: Sequence[T], seconds: Sequence[float | None], target: float, parallel: int = 0, most: int = 0
) -> list[list[T]]:
    """Return the items in bundles of about equal length.

    Args:
        items: what is bundled, in the order in which it should run.
        seconds: how long each item takes; one of an unknown time is a bundle of its own.
        target: of a bundle's length, in seconds; a longer item is a bundle of its own.
        parallel: bundles that run at the same time; if given, there are at least as many where the items allow it.
        most: bundles that are allowed; 0: any number. If there would be more, bundles become longer.
    """
    lengths = [target if one is None else one for one in seconds]
    length = min(target, sum(lengths) / parallel) if parallel else target
    made, room = list[list[T]](), 0.0
    for item, needed in zip(items, lengths, strict=True):
        if not made or needed > room:
            made.append([])
            room = length
        made[-1].append(item)
        room -= needed
    return _spread(items, lengths, most) if 0 < most < len(made) else made


def _spread(items: Sequence[T], lengths: Sequence[float], count: int) -> list[list[T]]:
    """Return `count` bundles; each item, the longest first, goes to the bundle that is the shortest so far."""
    made: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0.0, number) for number in range(count)]
    for at in sorted(range(len(items)), key=lambda at: -lengths[at]):
        total, number = heapq.heappop(shortest)
        made[number].append(at)
        heapq.heappush(shortest, (total + lengths[at], number))
    return [[items[at] for at in sorted(one)] for one in made]
