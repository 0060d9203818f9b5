"""Every figure of a report as a Vega-Lite specification: the page draws it in the browser, `figure` as a file.

A chart has one panel per data set, and one per average where that makes sense.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from peftbench.reports import _panels
from peftbench.results import series
from peftbench.results.series import Rows
from peftbench.results.summary import Block, MethodRow
from peftbench.results.text import printable
from peftbench.results.vega import VegaSpec

COLUMNS = 3  # panels in a row of a file


@dataclass(frozen=True)
class Chart:
    """One figure: a panel per data set."""

    name: str  # of the file
    title: str
    caption: str
    panels: Mapping[str, VegaSpec]  # title -> specification

    @property
    def whole(self) -> VegaSpec:
        """Return one specification of all panels."""
        panels = [{**spec, "title": title} for title, spec in self.panels.items()]
        choices = [panel.pop("params") for panel in panels if "params" in panel]  # of the whole, not of a panel
        title = f"{self.title}: {choices[0][0]['value']}" if choices else self.title
        count = len(panels)
        columns = 2 if count == COLUMNS + 1 else min(COLUMNS, count)  # no row with a single panel
        return {
            "title": {"text": title, "anchor": "start", "offset": 16, "fontSize": 14},
            "concat": panels,
            "columns": columns,
            "spacing": 36,
            **({"params": choices[0]} if choices else {}),
        }


def charts(block: Block, names: Collection[str] = ()) -> list[Chart]:
    """Return the charts of a block, or those with the given names; one without data is left out.

    Each shows only the best methods where there are more than a reader can tell apart. Charts of one block are made
    once for all formats of a report.
    """
    return list(_charts(block, tuple(names)))


@lru_cache(maxsize=16)
def _charts(block: Block, names: tuple[str, ...]) -> tuple[Chart, ...]:
    best = _best_first(block)
    single = {_title(block, name): (name,) for name in block.datasets}
    averages = {title[:1].upper() + title[1:]: names for title, names in block.averages().items()}
    found = []
    for kind in (kind for kind in KINDS if not names or kind.name in names):
        groups = {**single, **averages}.items()
        shown = {None, *best[: kind.most]}
        panels = {
            title: _printable(kind.draw(rows, block))
            for title, names in groups
            if (rows := [row for row in kind.rows(block, names) if {row["method"], row.get("other")} <= shown])
        }
        if panels:
            limit = f" The {kind.most} best of {len(best)} methods; tables list all." if len(best) > kind.most else ""
            found.append(Chart(kind.name, kind.title, kind.caption + limit, panels))
    return tuple(found)


def _best_first(block: Block) -> list[str]:
    """Return the names of all methods by their macro F1, averaged over the data sets that they have."""

    def score(row: MethodRow) -> float:
        found = [value for one in row.replicates.values() if not math.isnan(value := one.mean("macro_f1"))]
        return statistics.fmean(found) if found else -math.inf

    return [row.name for row in sorted(block.rows, key=score, reverse=True)]


def _printable(value: Any) -> Any:  # noqa: ANN401 - any part of a specification
    """Return a specification with every text from outside made printable."""
    if isinstance(value, Mapping):
        return {key: _printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def _title(block: Block, name: str) -> str:
    return printable(name) + (" (synthetic data)" if block.synthetic(name) else "")


def _ranked(block: Block, names: Sequence[str]) -> Rows:
    """Return the scores of the methods that are in a tier."""
    return [row for row in series.scores(block, names) if row["tier"]]


def _validated(block: Block, names: Sequence[str]) -> Rows:
    return [row for row in series.curves(block, names) if row["validation"] is not None]


# --- which there are -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChartKind:
    """One kind of chart: what it shows, its numbers, and how it is drawn."""

    name: str
    title: str
    caption: str
    rows: Callable[[Block, Sequence[str]], Rows]
    draw: Callable[[Rows, Block], VegaSpec]
    most: int = 40  # methods that it shows


def _cost_kind(cost: str, title: str) -> ChartKind:
    def rows(block: Block, names: Sequence[str]) -> Rows:
        return [row for row in series.costs(block, names) if row["cost"] == cost and row["tier"]]

    caption = "Dashed: Pareto front. Times depend on the machine and its load."
    return ChartKind(f"pareto_{cost}", f"Score against {title.partition(' (')[0]}", caption, rows, _panels.pareto)


KINDS: Sequence[ChartKind] = (
    ChartKind(
        "figure",
        "Score against trainable share",
        "Macro F1 with 95% intervals; a method with several budgets is a line. Horizontal: methods that train nothing "
        "in the backbone.",
        series.scores,
        _panels.score_against_share,
    ),
    ChartKind(
        "tiers",
        "Tiers",
        "Nothing is shown to be better than a method of tier 1. 95% intervals.",
        _ranked,
        _panels.tiers,
    ),
    ChartKind(
        "matrix",
        "Comparison of methods",
        "Macro F1 of the row minus that of the column, in points. Bold: differs at 5%, adjusted by Holm.",
        series.pairs,
        _panels.matrix,
        most=20,
    ),
    ChartKind(
        "critical_difference",
        "Average ranks",
        "Grey: the critical difference from the best average rank (Nemenyi, 5%); methods inside are not shown to "
        "differ from it.",
        series.ranks,
        _panels.critical_difference,
    ),
    *(_cost_kind(cost, title) for cost, (title, _) in series.COSTS.items()),
    ChartKind("seeds", "Seeds", "Macro F1 on test of every seed.", series.seeds, _panels.seeds),
    ChartKind(
        "curves",
        "Learning curves",
        "Macro F1 on the validation part at each evaluation, mean over seeds.",
        _validated,
        _panels.curves,
    ),
    ChartKind(
        "searches",
        "Rates that were tried",
        "Macro F1 on validation of every trial; a ring marks the chosen one.",
        series.searches,
        _panels.searches,
    ),
    ChartKind(
        "reliability",
        "Reliability",
        "How many predictions of a confidence are right, in ten bins; dashed: calibrated.",
        series.reliability,
        _panels.reliability,
    ),
    ChartKind(
        "confusion",
        "Confusion matrix",
        "Test images, mean over seeds. The page shows any method, a file the one with the best score.",
        series.confusion,
        _panels.confusion,
    ),
    ChartKind("recalls", "Recall of each class", "On the test part, mean over seeds.", series.recalls, _panels.recalls),
)
