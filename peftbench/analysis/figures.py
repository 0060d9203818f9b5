"""The figures of the analyses, in the style of all reports: legible in grey, a shape and dashes for each line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftbench.analysis.full_jobs import SHARES, FullSeries
from peftbench.analysis.positions import ESTIMATORS, KINDS, SELECTIONS
from peftbench.analysis.weight_change import ENDS, ORDERS, Kept
from peftbench.core.constants import HYBRID_SHARES, KEPT
from peftbench.results.formatting import format_percent
from peftbench.results.text import printable
from peftbench.results.vega import COLORS, SHAPES, VegaSpec, save

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - by its full name the run-time type checks of the tests find it

TITLES: Mapping[str, str] = MappingProxyType(  # of selections and orders
    {
        "moved": "moved most by full",
        "shpeft_ta": "SH-PEFT: ta",
        "shpeft_td_L1": "SH-PEFT: td L1",
        "shpeft_ta_td_L1": "SH-PEFT: ta + td L1",
        "shpeft_td_L2": "SH-PEFT: td L2",
        "shpeft_ta_td_L2": "SH-PEFT: ta + td L2",
        "spt": "SPT",
        "gps": "GPS",
        "importance": "SH-PEFT's importance",
        "magnitude": "largest magnitude",
        "random": "drawn at random",
    }
)
HEAT_MAPS = ("moved", "shpeft_ta_td_L2", "spt", "gps")  # selections whose places are drawn
LEAST = 1e-4  # share where the scale of the heat maps of places begins
SHOWN = 0.995  # share that is shown as 100%
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
LIGHT_TO_DARK = ("#F4F8FD", "#0B3C7D")
DARK = 0.5  # of the color scale, from which text in a cell is white
ROW, COLUMN, LEAST_WIDTH = 20, 44, 120  # pixels of a cell and of a panel
Shade = tuple[float, str]  # of a cell: 0..1, and its text


# --- sparsity --------------------------------------------------------------------------------------------------------


def sparsity_figure(series: FullSeries, found: Sequence[Kept], stem: Path) -> list[Path]:
    """Draw score against the share of tuned weights, a panel for each data set."""
    panels = {series.label(name): _curves([one for one in found if one.dataset == name]) for name in series.datasets}
    caption = f"Bars: 95% intervals. Dotted: {KEPT:.0%} of full fine-tuning's score."
    return _save(series, "Score with only some of the tuned weights", caption, panels, stem, columns=2)


def _curves(found: Sequence[Kept]) -> VegaSpec:
    """Draw a line for each order; all begin without and end with all tuned weights."""
    shares = [format_percent(share) for share in (0.0, *SHARES, 1.0)]
    full = next(one.score.value for one in found if one.order == "all")
    titles = [TITLES[order] for order in ORDERS]
    axis = {"grid": False, "labelAngle": -60}
    score = {"field": "score", "type": "quantitative", "title": "macro F1 (%)", "scale": {"zero": False}}
    shared = {
        "x": {"field": "share", "type": "ordinal", "sort": shares, "title": "weights with tuned values", "axis": axis},
        "xOffset": {"field": "order", "type": "nominal", "sort": titles},
        "color": _by_order(titles, COLORS),
    }
    bars = {"y": {**score, "field": "low"}, "y2": {"field": "high"}}
    lines, points = {"strokeDash": _by_order(titles, DASHES)}, {"shape": _by_order(titles, SHAPES)}
    layers: list[VegaSpec] = [
        {
            "mark": {"type": "rule", "strokeDash": [1, 3], "color": "#555555"},
            "data": {"values": [{"score": 100 * KEPT * full}]},
            "encoding": {"y": score, "x": {"value": 0}, "x2": {"value": "width"}},
        },
        {"mark": "rule", "encoding": shared | bars},
        {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": shared | {"y": score} | lines},
        {
            "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
            "encoding": shared | {"y": score} | points,
        },
    ]
    return {"data": {"values": _rows(found)}, "layer": layers, "width": 380, "height": 260}


def _by_order(titles: Sequence[str], looks: Sequence[object]) -> VegaSpec:
    """Return the encoding by which each order has its own color, dashes or shape."""
    scale = {"domain": list(titles), "range": list(looks[: len(titles)])}
    return {"field": "order", "type": "nominal", "title": None, "scale": scale}


def _rows(found: Sequence[Kept]) -> list[dict[str, object]]:
    return [
        {
            "share": format_percent(one.share),
            "order": TITLES[order],
            "score": _finite(100 * one.score.value),
            "low": _finite(100 * one.score.interval.low),
            "high": _finite(100 * one.score.interval.high),
        }
        for order in ORDERS
        for one in found
        if one.order in {order, *ENDS}
    ]


# --- hybridity -------------------------------------------------------------------------------------------------------


def hybridity_figure(series: FullSeries, matrix: pandas.DataFrame, stem: Path) -> list[Path]:
    """Draw the overlap of the most-moved weights of data sets, a panel for each share."""
    names = list(series.datasets)
    labels = {name: series.label(name) for name in names}
    panels = {}
    for share in HYBRID_SHARES:
        at = matrix[matrix["share"] == share]
        pairs = list(zip(at["dataset"], at["other"], at["overlap"], strict=True))
        both = {(labels[one], labels[other]): value for a, b, value in pairs for one, other in ((a, b), (b, a))}
        cells = {place: (value, _percent(value)) for place, value in both.items()}
        chance = f"chance {format_percent(float(at['chance'].iloc[0]))}"
        panels[f"{format_percent(share)}; {chance}"] = _heat(cells, list(labels.values()), list(labels.values()))
    caption = "Overlap (%) of the most-moved weights. Diagonal: two seeds of one data set, the ceiling."
    columns = len(panels) if len(names) < 4 else 2  # noqa: PLR2004 - small panels fit side by side
    return _save(series, "Most-moved weights of different data sets", caption, panels, stem, columns)


# --- positions -------------------------------------------------------------------------------------------------------


def places_figure(series: FullSeries, table: pandas.DataFrame, stem: Path) -> list[Path]:
    """Draw the share of the weights of each block and kind that is chosen, a panel for each of HEAT_MAPS."""
    blocks = _sorted_blocks(list(dict.fromkeys(table["block"])))
    kinds = [kind for kind in KINDS if kind in set(table["kind"])]
    panels = {}
    for name in HEAT_MAPS:
        at = table[table["selection"] == name].groupby(["block", "kind"])[["chosen", "weights"]].sum()
        shares = by_key(at["chosen"] / at["weights"])
        panels[TITLES[name]] = _heat({place: _place(share) for place, share in shares.items()}, blocks, kinds)
    jobs = len(series.jobs)
    over = f"all {jobs} models together" if jobs > 1 else series.jobs[0].name
    caption = f"% of the weights of a block and kind that are among the chosen 1% of all; {over}. Logarithmic scale."
    return _save(series, "Where the chosen weights lie", caption, panels, stem, columns=2)


def agreement_figure(series: FullSeries, table: pandas.DataFrame, stem: Path) -> list[Path]:
    """Draw the overlap of all selections, averaged over the models."""
    titles = [TITLES[name] for name in SELECTIONS]
    cells: dict[tuple[str, str], Shade] = {(title, title): (1.0, "100") for title in titles}
    for (one, other), value in by_key(table.groupby(["selection", "other"])["overlap"].mean()).items():
        cells |= dict.fromkeys([(TITLES[one], TITLES[other]), (TITLES[other], TITLES[one])], (value, _percent(value)))
    panels = {"": _heat(cells, titles, titles)}
    return _save(series, "Agreement of selections", "Overlap (%); chance is about 1%.", panels, stem)


def correlation_figure(series: FullSeries, table: pandas.DataFrame, stem: Path) -> list[Path]:
    """Draw how well importance predicts movement by kind of tensor, averaged over blocks and models."""
    kinds = [kind for kind in KINDS if kind in set(table["kind"])]
    found = by_key(table.groupby(["kind", "selection"])["spearman"].mean())
    cells = {
        (kind, TITLES[name]): (abs(value), f"{round(value, 2) + 0.0:+.2f}")  # + 0.0: no negative zero
        for (kind, name), value in found.items()
        if not math.isnan(value)
    }
    caption = "Rank correlation within tensors, averaged by kind. Darker: farther from 0."
    panels = {"": _heat(cells, kinds, [TITLES[name] for name in ESTIMATORS])}
    return _save(series, "Does importance before training predict movement?", caption, panels, stem)


def _sorted_blocks(blocks: Sequence[str]) -> list[str]:
    order = {"embedding": -1, "final": len(blocks)}
    return sorted(blocks, key=lambda block: order.get(block) or int(block))


# --- heat maps -------------------------------------------------------------------------------------------------------


def _heat(cells: Mapping[tuple[str, str], Shade], rows: Sequence[str], columns: Sequence[str]) -> VegaSpec:
    """Draw a matrix, light to dark, with a text in each cell; a missing cell is left white."""
    values = [
        {"row": printable(row), "column": printable(column), "shade": shade, "text": text}
        for (row, column), (shade, text) in cells.items()
    ]
    axis = {"domain": False, "ticks": False, "grid": False, "labelLimit": 180}
    place = {"type": "nominal", "title": None}
    color = {
        "field": "shade",
        "type": "quantitative",
        "legend": None,
        "scale": {"domain": [0, 1], "range": list(LIGHT_TO_DARK)},
    }
    return {
        "data": {"values": values},
        "width": max(COLUMN * len(columns), LEAST_WIDTH),
        "height": ROW * len(rows),
        "encoding": {
            "y": {**place, "field": "row", "sort": list(map(printable, rows)), "axis": axis},
            "x": {
                **place,
                "field": "column",
                "sort": list(map(printable, columns)),
                "axis": {**axis, "labelAngle": -50},
            },
        },
        "layer": [
            {"mark": "rect", "encoding": {"color": color}},
            {
                "mark": {"type": "text", "fontSize": 9},
                "encoding": {
                    "text": {"field": "text"},
                    "color": {"condition": {"test": f"datum.shade > {DARK}", "value": "white"}, "value": "#222222"},
                },
            },
        ],
    }


def _place(share: float) -> Shade:
    """Return the shade on a logarithmic scale from LEAST, and the share in percent in at most five letters."""
    shade = math.log(max(share, LEAST) / LEAST) / math.log(1 / LEAST)
    small = "0" if share == 0 else "<.01" if share < LEAST else f"{100 * share:.2g}"
    return shade, "100" if share >= SHOWN else small


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if value < 0.0995 else f"{100 * value:.0f}"  # noqa: PLR2004 - two digits


def by_key(column: pandas.Series[float]) -> dict[Any, float]:
    """Return the values of a column by their index."""
    return dict(zip(column.index.tolist(), column.tolist(), strict=True))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _save(
    series: FullSeries, title: str, caption: str, panels: Mapping[str, VegaSpec], stem: Path, columns: int = 1
) -> list[Path]:
    spec = {
        "title": {
            "text": title,
            "subtitle": [printable(series.title), caption],
            "anchor": "start",
            "offset": 16,
            "fontSize": 14,
        },
        "concat": [
            {**panel, **({"title": {"text": printable(name), "fontSize": 12}} if name else {})}
            for name, panel in panels.items()
        ],
        "columns": columns,
        "spacing": 36,
    }
    return save(spec, stem)
