"""The figures of the analyses, in the style of all reports: legible in grey, a marker and dashes for each line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from peftbench.analysis.full_jobs import SHARES, Series
from peftbench.analysis.positions import ESTIMATORS, KINDS, SELECTIONS
from peftbench.analysis.weight_change import HYBRID_SHARES, KEPT, Kept
from peftbench.results import drawing
from peftbench.results.drawing import COLORS, DASHES, MARKERS, grid
from peftbench.results.formatting import format_percent
from peftbench.results.text import printable

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
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
DARK = 0.55  # of the color scale, from which text in a cell is white
LEAST = 1e-4  # share where the scale of the heat maps of places begins
Draw = Callable[["matplotlib.figure.Figure"], None]
Matrix = NDArray[np.float64]


# --- sparsity --------------------------------------------------------------------------------------------------------


def sparsity_figure(series: Series, found: Sequence[Kept], stem: Path) -> list[Path]:
    """Draw score against the share of tuned weights, a panel for each data set."""
    rows, columns = grid(len(series.datasets))
    size = (5.8, 4.2) if rows * columns == 1 else (3.9 * columns + 0.4, 3.0 * rows + 0.9)
    return drawing.save(partial(_draw_sparsity, series, found), size, stem)


def _draw_sparsity(series: Series, found: Sequence[Kept], figure: matplotlib.figure.Figure) -> None:
    names = list(series.datasets)
    rows, columns = grid(len(names))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, (axis, name) in enumerate(zip(axes, names, strict=False)):
        _panel(axis, [one for one in found if one.dataset == name])
        _title(axis, series.label(name))
        axis.set_ylabel("" if number % columns else "macro F1 (%)")
        axis.set_xlabel("share of weights with their tuned value" if number + columns >= len(names) else "")
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    _suptitle(figure, f"{series.title} · bars: 95% intervals")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, 2 * columns), frameon=False, handlelength=3)


def _panel(axis: matplotlib.axes.Axes, found: Sequence[Kept]) -> None:
    shares = (0.0, *SHARES, 1.0)
    ends = {one.share: one for one in found if one.order in {"none", "all"}}
    orders = list(dict.fromkeys(one.order for one in found if one.share not in ends))
    for number, order in enumerate(orders):
        at = ends | {one.share: one for one in found if one.order == order}
        _line(axis, order, number, [at[share] for share in shares], 0.09 * (number - (len(orders) - 1) / 2))
    axis.axhline(
        100 * KEPT * ends[1.0].score.value,
        color="#555555",
        linewidth=1,
        linestyle=(0, (1, 2)),
        label=f"{KEPT:.0%} of full",
    )
    axis.set_xticks(range(len(shares)), [format_percent(share) for share in shares], rotation=60)


def _line(axis: matplotlib.axes.Axes, order: str, number: int, at: Sequence[Kept], shift: float) -> None:
    values, lows, highs = (
        np.asarray([100 * value for value in column])
        for column in zip(
            *((one.score.value, one.score.interval.low, one.score.interval.high) for one in at), strict=True
        )
    )
    bars = np.nan_to_num(np.stack([values - lows, highs - values])).clip(min=0)
    axis.errorbar(
        np.arange(len(at)) + shift,
        values,
        yerr=bars,
        label=TITLES[order],
        color=COLORS[number],
        marker=MARKERS[number],
        linestyle="-" if number == 0 else cast("Any", DASHES[number - 1]),
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.5,
        elinewidth=0.7,
    )


# --- hybridity -------------------------------------------------------------------------------------------------------


def hybridity_figure(series: Series, matrix: pandas.DataFrame, stem: Path) -> list[Path]:
    """Draw the overlap of the most-moved weights of data sets, a panel for each share."""
    side = 1.5 + 0.75 * len(series.datasets)
    columns = 2 if side > 3 else 4  # noqa: PLR2004 - inches
    rows = len(HYBRID_SHARES) // columns
    draw = partial(_draw_hybridity, series, matrix, (rows, columns))
    return drawing.save(draw, (side * columns + 0.8, (side + 0.2) * rows + 0.6), stem)


def _draw_hybridity(
    series: Series, matrix: pandas.DataFrame, shape: tuple[int, int], figure: matplotlib.figure.Figure
) -> None:
    names = list(series.datasets)
    axes = figure.subplots(*shape, squeeze=False).ravel()
    for number, (axis, share) in enumerate(zip(axes, HYBRID_SHARES, strict=True)):
        at = matrix[matrix["share"] == share]
        values = np.full((len(names), len(names)), np.nan)
        for one, other, value in zip(at["dataset"], at["other"], at["overlap"], strict=True):
            values[names.index(one), names.index(other)] = values[names.index(other), names.index(one)] = value
        shown = [[_percent(value) for value in row] for row in values]
        left = number % shape[1] == 0
        _heat(axis, values, shown, [series.label(n) if left else "" for n in names], [series.label(n) for n in names])
        chance = float(at["chance"].iloc[0])
        _title(axis, f"{format_percent(share)} of the weights; chance {format_percent(chance)}")
    _suptitle(figure, f"{series.title} · overlap (%) of the most-moved weights; diagonal: two seeds of one data set")


# --- positions -------------------------------------------------------------------------------------------------------


def places_figure(series: Series, table: pandas.DataFrame, stem: Path) -> list[Path]:
    """Draw the share of the weights of each block and kind that is chosen, a panel for each of HEAT_MAPS."""
    blocks = list(dict.fromkeys(table["block"]))
    draw = partial(_draw_places, series, table, _sorted_blocks(blocks))
    return drawing.save(draw, (10.6, 2 * (1.7 + 0.27 * len(blocks)) + 0.6), stem)


def _draw_places(
    series: Series, table: pandas.DataFrame, blocks: Sequence[str], figure: matplotlib.figure.Figure
) -> None:
    kinds = [kind for kind in KINDS if kind in set(table["kind"])]
    axes = figure.subplots(2, 2, squeeze=False).ravel()
    for number, (axis, name) in enumerate(zip(axes, HEAT_MAPS, strict=True)):
        at = table[table["selection"] == name].groupby(["block", "kind"])[["chosen", "weights"]].sum()
        values = np.full((len(blocks), len(kinds)), np.nan)
        for (block, kind), share in by_key(at["chosen"] / at["weights"]).items():
            values[blocks.index(block), kinds.index(kind)] = share
        shown = [[_short(value) for value in row] for row in values]
        scaled = np.log(values.clip(min=LEAST) / LEAST) / np.log(1 / LEAST)
        _heat(axis, scaled, shown, blocks, kinds, size=6.5)
        axis.set_ylabel("" if number % 2 else "block")
        _title(axis, TITLES[name])
    jobs = len(series.jobs)
    over = f"all {jobs} models together" if jobs > 1 else series.jobs[0].name
    _suptitle(figure, f"{series.title} · % of the weights there that are among the chosen 1%; {over}")


def agreement_figure(series: Series, table: pandas.DataFrame, stem: Path) -> list[Path]:
    """Draw the overlap of all selections, averaged over the models."""
    return drawing.save(partial(_draw_agreement, series, table), (6.6, 5.6), stem)


def _draw_agreement(series: Series, table: pandas.DataFrame, figure: matplotlib.figure.Figure) -> None:
    values = np.eye(len(SELECTIONS))
    for (one, other), value in by_key(table.groupby(["selection", "other"])["overlap"].mean()).items():
        i, j = SELECTIONS.index(one), SELECTIONS.index(other)
        values[i, j] = values[j, i] = value
    titles = [TITLES[name] for name in SELECTIONS]
    _heat(figure.subplots(), values, [[_percent(value) for value in row] for row in values], titles, titles)
    _suptitle(figure, f"{series.title}\noverlap (%) of selections of 1% of the weights; chance about 1%")


def correlation_figure(series: Series, table: pandas.DataFrame, stem: Path) -> list[Path]:
    """Draw how well importance predicts movement by kind of tensor, averaged over blocks and models."""
    kinds = [kind for kind in KINDS if kind in set(table["kind"])]
    draw = partial(_draw_correlations, series, table, kinds)
    return drawing.save(draw, (5.8, 1.8 + 0.36 * len(kinds)), stem)


def _draw_correlations(
    series: Series, table: pandas.DataFrame, kinds: Sequence[str], figure: matplotlib.figure.Figure
) -> None:
    names = list(ESTIMATORS)
    values = np.full((len(kinds), len(names)), np.nan)
    for (kind, name), value in by_key(table.groupby(["kind", "selection"])["spearman"].mean()).items():
        values[kinds.index(kind), names.index(name)] = value
    shown = [["" if np.isnan(value) else f"{round(value, 2) + 0.0:+.2f}" for value in row] for row in values]
    _heat(figure.subplots(), np.abs(values), shown, kinds, [TITLES[name] for name in names])
    _suptitle(
        figure, f"{series.title}\nrank correlation of importance before and movement after; darker: farther from 0"
    )


def _sorted_blocks(blocks: Sequence[str]) -> list[str]:
    order = {"embedding": -1, "final": len(blocks)}
    return sorted(blocks, key=lambda block: order.get(block) or int(block))


# --- heat maps -------------------------------------------------------------------------------------------------------


def _heat(
    axis: matplotlib.axes.Axes,
    values: Matrix,
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    size: float = 8,
) -> None:
    """Draw a matrix of 0..1, light to dark, with a text in each cell; nan is left white."""
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.set_xticks(
        range(len(columns)), [printable(name) for name in columns], rotation=40, ha="right", parse_math=False
    )
    axis.set_yticks(range(len(rows)), [printable(name) for name in rows], parse_math=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            color = "white" if values[i, j] > DARK else "#222222"
            axis.text(j, i, text, ha="center", va="center", fontsize=size, color=color)


def by_key(column: pandas.Series[float]) -> dict[Any, float]:
    """Return the values of a column by their index."""
    return dict(zip(column.index.tolist(), column.tolist(), strict=True))


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.1f}" if value < 0.0995 else f"{100 * value:.0f}"  # noqa: PLR2004


def _short(value: float) -> str:
    """Return a share in percent in at most four letters."""
    if np.isnan(value):
        return ""
    return "0" if value == 0 else "<.01" if value < LEAST else f"{100 * value:.2g}" if value < 0.995 else "100"  # noqa: PLR2004


def _title(axis: matplotlib.axes.Axes, text: str) -> None:
    axis.set_title(printable(text), loc="left", fontsize=9, fontweight="bold", parse_math=False)


def _suptitle(figure: matplotlib.figure.Figure, text: str) -> None:
    lines = "\n".join(printable(line) for line in text.split("\n"))
    figure.suptitle(lines, fontsize=8.5, color="#444444", parse_math=False)
