"""How values look in every table: percent, counts, sizes, ranges, and the mark of the first tier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from peftbench.core.record import Costs, Record, Tuning
from peftbench.results import summary
from peftbench.results.comparison import Pair
from peftbench.results.summary import MethodRow, Replicates
from peftbench.statistics import bootstrap
from peftbench.storage.sizes import format_size

Mark: TypeAlias = Literal["", "best"]

NONE = "\N{EN DASH}"
_RATES_LISTED = 3  # more learning rates than this are shown as a range
_SMALLEST_P = 0.001
_THOUSAND = 999.5  # three digits round it to 1000


@dataclass(frozen=True)
class Cell:
    """One cell: its text, an addition in smaller type, and whether its method is of the first tier."""

    text: str
    aside: str = ""
    mark: Mark = ""

    def __str__(self) -> str:
        """Return text and addition without marks."""
        return f"{self.text} {self.aside}".strip()


def label_cell(row: MethodRow) -> Cell:
    """Return the label of the method; baselines are marked as such."""
    return Cell(row.label, "(baseline)" if row.baseline else "")


def mark_tier(rows: Sequence[MethodRow], cells: Sequence[Cell], tiers: Mapping[str, int]) -> list[Cell]:
    """Return the cells, those of the first tier marked: no method is shown to be better than one of them."""
    return [
        replace(cell, mark="best" if tiers.get(row.name) == 1 else "") for row, cell in zip(rows, cells, strict=True)
    ]


def f1_cell(found: Replicates) -> Cell:
    """Return the mean macro F1 of replicates with its spread over seeds and its interval."""
    if not found.done:
        return Cell("damaged" if any(job.damage for job in found.failed) else "failed")
    spread = found.spread("macro_f1")
    seeds = "" if math.isnan(spread) else f"± {100 * spread:.1f}"
    value = found.mean("macro_f1")
    return Cell(format_points(value), f"{seeds} {_bounds(found.f1)}".strip())


def group_cell(found: Replicates, metric: str) -> Cell:
    """Return the mean of a metric per group over seeds, with its interval over groups."""
    estimate = bootstrap.estimate(found.group_runs, metric)
    return Cell(format_points(estimate.value), _bounds(estimate))


def average_cell(row: MethodRow, datasets: Sequence[str]) -> Cell:
    """Return macro F1 of one data set or averaged over several; undefined if the row lacks one of them."""
    found = row.estimate(datasets)
    if found:
        return Cell(format_points(found.value), _bounds(found))
    failed = any(name in row.replicates and not row.replicates[name].done for name in datasets)
    return Cell("failed" if failed else NONE)


def difference_cell(found: bootstrap.Estimate | None) -> Cell:
    """Return a difference of scores in points, with its sign and interval."""
    if found is None:
        return Cell(NONE)
    return Cell(f"{round(100 * found.value, 1) + 0.0:+.1f}", _bounds(found))


def gap_cell(pair: Pair | None) -> Cell:
    """Return how many points the second method of a pair lies below the first, with the interval."""
    if pair is None:
        return Cell(NONE)
    low, high = pair.found.interval
    bounds = "" if math.isnan(low) else f"[{format_points(low)}, {format_points(high)}]"
    return Cell(format_points(pair.found.difference), bounds)


def p_cell(pair: Pair | None) -> Cell:
    """Return the adjusted p-value of a pair."""
    return Cell(format_probability(math.nan if pair is None else pair.p))


def score_cell(value: float) -> Cell:
    """Return a score in 0..1 without interval."""
    return Cell(format_points(value))


def target_cell(row: MethodRow, records: Sequence[Record]) -> Cell:
    """Return the requested trainable share, and whether it is below the method's floor or above its ceiling."""
    if row.target is None:
        return Cell(NONE)
    edges = {record.budget.edge for record in records if record.budget and record.budget.edge}
    share = format_percent(row.target / records[0].backbone.parameters)
    return Cell(share, f"({', '.join(sorted(edges))})" if edges else "")


def _bounds(found: bootstrap.Estimate) -> str:
    low, high = found.interval.low, found.interval.high
    return "" if math.isnan(low) else f"[{format_points(low)}, {format_points(high)}]"


# --- numbers ---------------------------------------------------------------------------------------------------------


def format_points(value: float) -> str:
    """Return a share of 1 in percent with one decimal."""
    return NONE if math.isnan(value) else f"{round(100 * value, 1) + 0.0:.1f}"  # + 0.0: no negative zero


def format_percent(value: float) -> str:
    """Return a share of 1 in percent with three digits: trainable shares span five orders of magnitude."""
    return f"{100 * value:.3g}%"


def format_count(value: float) -> str:
    """Return a number of parameters."""
    return f"{value:,.0f}"


def format_giga(value: float) -> str:
    """Return operations in units of 10^9 with three digits."""
    return f"{value / 1e9:.3g}" if value < _THOUSAND * 1e9 else f"{value / 1e9:,.0f}"


def format_rate(value: float) -> str:
    """Return images per second with three digits, or all digits of a larger number."""
    return f"{value:.3g}" if value < _THOUSAND else f"{value:,.0f}"


def format_probability(value: float) -> str:
    """Return a p-value with three decimals, or that it is smaller."""
    return NONE if math.isnan(value) else f"{value:.3f}" if value >= _SMALLEST_P else f"< {_SMALLEST_P}"


def format_latency(value: float) -> str:
    """Return seconds in ms with three digits."""
    return NONE if math.isnan(value) else f"{1000 * value:.3g} ms"


def format_range(values: Iterable[float], show: Callable[[float], str]) -> str:
    """Return one value, or the range of values that differ; nan is left out."""
    found = sorted({value for value in values if not math.isnan(value)})
    return NONE if not found else show(found[0]) if len(found) == 1 else f"{show(found[0])} to {show(found[-1])}"


# --- parameters and costs of replicates ------------------------------------------------------------------------------


def _trainable(records: Sequence[Record]) -> list[float]:
    return [record.counts.trainable for record in records if record.counts]


def _with_head(records: Sequence[Record]) -> list[float]:
    return [record.counts.trainable + record.counts.head for record in records if record.counts]


def _mean(get: Callable[[Costs], float | None], show: Callable[[float], str]) -> Callable[[Sequence[Record]], str]:
    """Return a function that shows the mean of a cost over the records that have it, or a dash."""

    def shown(records: Sequence[Record]) -> str:
        found = [value for record in records if record.costs and (value := get(record.costs)) is not None]
        return show(sum(found) / len(found)) if found else NONE

    return shown


def _peak(records: Sequence[Record]) -> str:
    """Return the largest peak memory of the records."""
    peak = max((record.costs.peak_memory for record in records if record.costs), default=None)
    return NONE if peak is None else format_size(peak)


def _memory(kind: str) -> Callable[[Sequence[Record]], str]:
    return _mean(lambda costs: getattr(costs.memory, kind) if costs.memory else None, format_size)


COSTS: Mapping[str, Callable[[Sequence[Record]], str]] = MappingProxyType(
    {
        "trained": lambda records: format_range(_trainable(records), format_count),
        "with head": lambda records: format_range(_with_head(records), format_count),
        "share": lambda records: format_range(map(summary.trainable_share, records), format_percent),
        "seconds": _mean(lambda costs: costs.seconds, "{:,.1f}".format),
        "memory": _peak,
    }
)


def _train_cpu_milliseconds(costs: Costs) -> float | None:
    """Return the CPU time of training per image, in ms."""
    if costs.train_cpu_seconds is None or not costs.images_per_second:
        return None
    return 1e3 * costs.train_cpu_seconds / (costs.images_per_second * costs.train_seconds)


SPENT_MEANS = (  # for the caption of a table of these columns
    "floating-point operations (10^9; a multiply-add counts as two) of the forward pass and of a training step, per "
    "image; memory that a training step holds, counted tensor by tensor, beside the measured peak; images per second; "
    "CPU time of training per image in ms, by which methods compare even on a busy machine."
)
SPENT: Mapping[str, Callable[[Sequence[Record]], str]] = MappingProxyType(
    {
        "GFLOPs forward": _mean(lambda costs: costs.flops_forward, format_giga),
        "training": _mean(lambda costs: costs.flops_training, format_giga),
        **{kind: _memory(kind) for kind in ("weights", "gradients", "optimizer", "activations", "pixels")},
        "total": _memory("total"),
        "peak": _peak,
        "images/s training": _mean(lambda costs: costs.images_per_second, format_rate),
        "prediction": _mean(lambda costs: costs.predicted_per_second, format_rate),
        "CPU ms/image": _mean(_train_cpu_milliseconds, "{:,.1f}".format),
    }
)


def format_search(tuning: Tuning, optimizer: str) -> str:
    """Return the rates tried with an optimizer and their scores, ascending: `0.001: 61.2, 0.01: failed`.

    Fields of the method that were tuned follow the rate: `0.001 (layer_decay=0.75): 62.0`.
    """
    tried = sorted((point for point in tuning.points if point.optimizer == optimizer), key=lambda point: point.lr)
    return ", ".join(f"{_at(point.lr, point.setting)}: {_points_or_failed(point.score)}" for point in tried)


def _points_or_failed(score: float | None) -> str:
    return "failed" if score is None else format_points(score)


def _at(lr: float, setting: Mapping[str, Any]) -> str:
    fields = ", ".join(f"{name}={value}" for name, value in setting.items())
    return f"{lr:g} ({fields})" if fields else f"{lr:g}"


def format_chosen(tuning: Tuning, optimizer: str) -> str:
    """Return the chosen rate and whether it is at an edge, if it was chosen with this optimizer."""
    best = tuning.best
    if best.optimizer != optimizer:
        return ""
    return f"{_at(best.lr, best.setting)}{f' ({tuning.edge} tried)' if tuning.edge else ''}"


def format_learning_rates(records: Sequence[Record]) -> str:
    """Return the learning rates of the records, with a star if tuned and the optimizer if several were tried."""
    found = sorted({float(record.recipe["lr"]) for record in records if record.has_learning_rate})
    if not found:
        return NONE
    tuned = "*" if any(record.tuning for record in records) else ""
    tuned += " (edge)" if any(record.tuning and record.tuning.edge for record in records) else ""
    tried = {name for record in records if record.tuning for name in record.tuning.optimizers}
    chosen = sorted({str(record.recipe["optimiser"]) for record in records}) if len(tried) > 1 else []
    several = len(found) > _RATES_LISTED
    rates = format_range(found, "{:g}".format) if several else ", ".join(map("{:g}".format, found))
    return f"{'/'.join(chosen)} {rates}{tuned}".strip()
