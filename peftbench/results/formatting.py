"""How numbers look in every table: percent, counts, bytes, ranges, and the marks of best and second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from peftbench.core.record import Costs, Record
from peftbench.results import summary
from peftbench.results.summary import Entry, Row
from peftbench.statistics import bootstrap

Mark: TypeAlias = Literal["", "best", "second"]

NONE = "\N{EN DASH}"
_RATES_LISTED = 3  # more learning rates than this are shown as a range
_GIB = 1024  # MiB
_THOUSAND = 999.5  # what three digits would round to 1000


@dataclass(frozen=True)
class Cell:
    """One cell: its text, what stands beside it in smaller type, and whether it is the best of its column."""

    text: str
    aside: str = ""
    mark: Mark = ""

    def __str__(self) -> str:
        """Without marks."""
        return f"{self.text} {self.aside}".strip()


Scored: TypeAlias = tuple[float, Cell]  # a value in 0..1, nan where there is none, and how it is shown


def label(row: Row) -> Cell:
    """The method; baselines say that they are."""
    return Cell(row.label, "(baseline)" if row.baseline else "")


def marked(scores: Sequence[Scored]) -> list[Cell]:
    """The cells with best and second marked, as far as what is shown tells them apart."""
    shown = [math.nan if math.isnan(value) else round(100 * value, 1) for value, _ in scores]
    ranks = sorted({value for value in shown if not math.isnan(value)}, reverse=True)[:2]
    marks: dict[float, Mark] = dict(zip(ranks, ("best", "second"), strict=False))
    return [replace(cell, mark=marks.get(value, "")) for value, (_, cell) in zip(shown, scores, strict=True)]


def f1(entry: Entry) -> Scored:
    """Macro F1 of one entry, beside it the spread over seeds and the interval."""
    if not entry.done:
        return math.nan, Cell("failed")
    spread = entry.spread("macro_f1")
    seeds = "" if math.isnan(spread) else f"± {100 * spread:.1f}"
    return entry.score("macro_f1"), Cell(points(entry.score("macro_f1")), f"{seeds} {_bounds(entry.f1)}".strip())


def f1_average(row: Row, datasets: Sequence[str]) -> Scored:
    """Macro F1 of one data set or averaged over several; nothing stands in for a missing one."""
    found = row.estimate(datasets)
    if found:
        return found.value, Cell(points(found.value), _bounds(found))
    failed = any(name in row.entries and not row.entries[name].done for name in datasets)
    return math.nan, Cell("failed" if failed else NONE)


def gap(found: bootstrap.Estimate | None) -> Cell:
    """A difference of scores in points, with its sign."""
    if found is None:
        return Cell(NONE)
    return Cell(f"{round(100 * found.value, 1) + 0.0:+.1f}", _bounds(found))


def score(value: float) -> Scored:
    """A score without interval."""
    return value, Cell(points(value))


def points(value: float) -> str:
    """A share of 1 in percent, one decimal."""
    return NONE if math.isnan(value) else f"{round(100 * value, 1) + 0.0:.1f}"  # + 0.0: no negative zero


def _bounds(found: bootstrap.Estimate) -> str:
    low, high = found.interval.low, found.interval.high
    return "" if math.isnan(low) else f"[{points(low)}, {points(high)}]"


def target(row: Row, records: Sequence[Record]) -> Cell:
    """What was asked for, as a share of the backbone, and whether the method could not go so far down or up."""
    if row.target is None:
        return Cell(NONE)
    edges = {record.budget.edge for record in records if record.budget and record.budget.edge}
    return Cell(percent(row.target / records[0].backbone.parameters), f"({', '.join(sorted(edges))})" if edges else "")


def trainable(records: Sequence[Record]) -> list[float]:
    """Trained parameters of each job, head excluded."""
    return [record.counts.trainable for record in records if record.counts]


def _with_head(records: Sequence[Record]) -> list[float]:
    return [record.counts.trainable + record.counts.head for record in records if record.counts]


def _mean_seconds(records: Sequence[Record]) -> str:
    seconds = [record.costs.seconds for record in records if record.costs]
    return f"{sum(seconds) / len(seconds):,.1f}" if seconds else NONE


def _peak(records: Sequence[Record]) -> str:
    """The largest of the seeds'."""
    peak = max((record.costs.peak_memory / 2**20 for record in records if record.costs), default=math.nan)
    return NONE if math.isnan(peak) else f"{peak:,.0f} MiB" if peak < _GIB else f"{peak / _GIB:,.1f} GiB"


COSTS: Mapping[str, Callable[[Sequence[Record]], str]] = MappingProxyType(
    {
        "trained": lambda records: span(trainable(records), count),
        "with head": lambda records: span(_with_head(records), count),
        "share": lambda records: span(map(summary.share, records), percent),
        "seconds": _mean_seconds,
        "memory": _peak,
    }
)


# What a training step computes and holds.
SPENT_MEANS = (
    "operations (FLOPs, 10^9, a multiply-add is two) of an image forward and in a training step; bytes that a step "
    "holds, counted, beside the peak that was measured; images a second."
)


def _spent(get: Callable[[Costs], float | None], show: Callable[[float], str]) -> Callable[[Sequence[Record]], str]:
    """The mean over seeds of a cost, or a dash."""

    def shown(records: Sequence[Record]) -> str:
        found = [value for record in records if record.costs and (value := get(record.costs)) is not None]
        return show(sum(found) / len(found)) if found else NONE

    return shown


def _held(kind: str) -> Callable[[Sequence[Record]], str]:
    return _spent(lambda costs: getattr(costs.memory, kind) if costs.memory else None, mebibytes)


def giga(value: float) -> str:
    """Operations in units of 10^9, three digits."""
    return f"{value / 1e9:.3g}" if value < _THOUSAND * 1e9 else f"{value / 1e9:,.0f}"


def rate(value: float) -> str:
    """Images a second, three digits or all."""
    return f"{value:.3g}" if value < _THOUSAND else f"{value:,.0f}"


def mebibytes(value: float) -> str:
    """Bytes in MiB, three digits or all."""
    size = value / 2**20
    return f"{size:.3g} MiB" if size < _THOUSAND else f"{size:,.0f} MiB"


SPENT: Mapping[str, Callable[[Sequence[Record]], str]] = MappingProxyType(
    {
        "GFLOPs forward": _spent(lambda costs: costs.flops_forward, giga),
        "training": _spent(lambda costs: costs.flops_training, giga),
        **{kind: _held(kind) for kind in ("weights", "gradients", "optimizer", "activations", "pixels")},
        "in all": _held("total"),
        "peak": _peak,
        "images/s training": _spent(lambda costs: costs.images_per_second, rate),
        "prediction": _spent(lambda costs: costs.predicted_per_second, rate),
    }
)


def rates(records: Sequence[Record]) -> str:
    """The learning rates of the seeds, with a star where they were searched for on validation."""
    found = sorted({float(record.recipe["lr"]) for record in records if record.method.name != "majority"})
    if not found:
        return NONE
    tuned = "*" if any(record.tuning for record in records) else ""
    return (span(found, "{:g}".format) if len(found) > _RATES_LISTED else ", ".join(map("{:g}".format, found))) + tuned


def span(values: Iterable[float], show: Callable[[float], str]) -> str:
    """One value, or the range of values that are not all the same."""
    found = sorted({value for value in values if not math.isnan(value)})
    return NONE if not found else show(found[0]) if len(found) == 1 else f"{show(found[0])} to {show(found[-1])}"


def count(value: float) -> str:
    """A number of parameters."""
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """A share of 1 in percent, three digits: shares span five orders of magnitude."""
    return f"{100 * value:.3g}%"


# --- in a terminal -------------------------------------------------------------------------------------------------

_STYLES = MappingProxyType({"": "", "best": "bold", "second": "underline"})


def styled(cell: Cell) -> str:
    """A cell in rich's markup."""
    style = _STYLES[cell.mark]
    text = f"[{style}]{plain(cell.text)}[/{style}]" if style else plain(cell.text)
    return f"{text} [dim]{plain(cell.aside)}[/dim]" if cell.aside else text


def plain(text: str) -> str:
    """A text that rich shows as it stands: the brackets of `lora[r=4]` are no markup."""
    from rich.markup import escape  # noqa: PLC0415 - reports need no rich

    return escape(text)
