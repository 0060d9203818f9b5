"""What a method costs, and which of the user's limits it exceeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from peftbench.core.record import Costs, Record
from peftbench.core.syntax import budget, seconds
from peftbench.errors import RequestError
from peftbench.results import summary
from peftbench.results.formatting import format_count, format_latency, format_percent
from peftbench.results.summary import Block
from peftbench.storage.sizes import format_size, parse_size

Limit: TypeAlias = str | float | None


@dataclass(frozen=True)
class Spent:
    """What a method costs: the largest over its jobs of sizes, the mean of times."""

    trainable: int
    share: float
    memory: int  # bytes, the peak while training
    latency: float  # seconds per image of a batch; nan if not recorded
    seconds: float  # of a job
    cpu_seconds: float  # of a job; nan if not recorded
    latency_is_bound: bool = False  # its own is not recorded: it was trained on stored features

    @classmethod
    def of(cls, records: Sequence[Record], plain: float) -> Spent | None:
        """Return the costs of finished jobs; None without one.

        `plain` is an upper bound on the latency of the backbone alone, for methods that were trained on its features.
        """
        counts = [record.counts.trainable for record in records if record.counts]
        costs = [record.costs for record in records if record.costs]
        if not counts or not costs:
            return None
        latency = mean_cost(costs, latency_of)
        return cls(
            max(counts),
            max(map(summary.trainable_share, records)),
            max(one.peak_memory for one in costs),
            plain if math.isnan(latency) else latency,
            mean_cost(costs, lambda one: one.seconds),
            mean_cost(costs, lambda one: one.cpu_seconds),
            math.isnan(latency) and not math.isnan(plain),
        )

    @property
    def latency_text(self) -> str:
        """Return the latency with its unit, and whether it is an upper bound."""
        return f"{'≤ ' if self.latency_is_bound else ''}{format_latency(self.latency)}"


@dataclass(frozen=True)
class Limits:
    """What a method may cost at most; None: anything."""

    share: float | int | None = None  # of the backbone's parameters, or their number
    memory: int | None = None  # bytes, the peak while training
    latency: float | None = None  # seconds per image

    @classmethod
    def read(cls, share: Limit = None, memory: Limit = None, latency: Limit = None) -> Limits:
        """Return the limits that texts such as `0.5%`, `8GiB` and `20ms` state. Raises RequestError."""
        return cls(
            _read_share(str(share)) if share else None,
            parse_size(str(memory), "--max-memory") if memory else None,
            seconds(str(latency)) if latency else None,
        )

    def exceeded(self, spent: Spent) -> str:
        """Return which limit a method exceeds, in words; empty if none."""
        size = spent.share if isinstance(self.share, float) else spent.trainable
        if self.share is not None and size > self.share:
            return f"trains {format_percent(spent.share)} ({format_count(spent.trainable)} parameters)"
        if self.memory is not None and spent.memory > self.memory:
            return f"takes {format_size(spent.memory)} of memory"
        if self.latency is not None and not spent.latency <= self.latency:
            known = not math.isnan(spent.latency)
            return f"takes {spent.latency_text} per image" if known else "has no recorded latency"
        return ""


def latency_of(costs: Costs) -> float | None:
    """Return the seconds per image in evaluations; None where it is not recorded."""
    return 1 / costs.predicted_per_second if costs.predicted_per_second else None


def plain_latency(block: Block) -> float:
    """Return an upper bound on the latency of the backbone alone: that of the fastest method; nan if none is known."""
    found = [mean_cost([r.costs for r in row.records if r.costs], latency_of) for row in block.rows]
    return min((value for value in found if not math.isnan(value)), default=math.nan)


def _read_share(text: str) -> float | int:
    """Return a share or a number of weights. Raises RequestError that names the flag."""
    try:
        return budget(text)
    except RequestError:
        raise RequestError(
            f"--max-share must be a share such as 0.5% or a number such as 100k, got {text!r}."
        ) from None


def mean_cost(costs: Sequence[Costs], get: Callable[[Costs], float | None]) -> float:
    """Return the mean of a cost over the jobs that have it; nan if none has."""
    found = [value for one in costs if (value := get(one)) is not None]
    return statistics.fmean(found) if found else math.nan
