"""Score against trainable share: a curve for a method with several budgets, a point for any other.

A method that trains nothing in the backbone has no place on a logarithmic axis and is drawn as a horizontal line.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from peftbench.core.contract import Result
from peftbench.results import drawing, summary
from peftbench.results.drawing import COLORS, DASHES, MARKERS, grid
from peftbench.results.summary import Block, MethodRow
from peftbench.results.text import printable

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_NEAR = 0.05  # decades: points closer than this are moved apart by as much, so that no interval hides another
_ROOM = 1.7  # left and right of the outermost points, as a factor

Point: TypeAlias = tuple[float, float, float, float]  # share of the backbone, score, low, high; 0..1


@dataclass(frozen=True)
class Figure:
    """`figure.png` and `figure.svg`; numbered where the results have several settings."""

    suffix: ClassVar[str] = ".png"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write the figures into the folder `out` and return their paths; a setting without a finished job has none."""
        blocks = [block for block in summary.summarize(results) if _names(block)]
        files = []
        for number, block in enumerate(blocks, 1):
            stem = f"figure_{number}" if len(blocks) > 1 else "figure"
            files += drawing.save(partial(_draw, block), _size(block), out / stem, ("png", "svg"))
        return files


# --- the whole -----------------------------------------------------------------------------------------------------


def _panels(block: Block) -> dict[str, tuple[str, ...]]:
    """Return the data sets of each panel by its title: each alone, then the averages."""
    alone = {name + (" (synthetic)" if block.synthetic(name) else ""): (name,) for name in block.datasets}
    return {**alone, **block.averages()}


def _size(block: Block) -> tuple[float, float]:
    """Return width and height in inches: about 3 by 3 per panel, more for a single one, and room for the legend."""
    rows, columns = grid(len(_panels(block)))
    if rows * columns == 1:
        return 5.6, 3.7 + 0.2 * _legend_lines(block, 5.6)
    width = 3.0 * columns + 0.6
    return width, 2.75 * rows + 0.4 + 0.2 * _legend_lines(block, width)


def _legend_lines(block: Block, width: float) -> int:
    return math.ceil(len(_names(block)) / max(2, int(width / 1.75)))


def _draw(block: Block, canvas: matplotlib.figure.Figure) -> None:
    panels = _panels(block)
    rows, columns = grid(len(panels))
    axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for number, (axis, (title, datasets)) in enumerate(zip(axes, panels.items(), strict=False)):
        _panel(axis, block, datasets)
        axis.set_title(printable(title), loc="left", fontsize=10, fontweight="bold", parse_math=False)
        axis.set_ylabel("" if number % columns else "macro F1 (%)")
        axis.set_xlabel("trainable share of the backbone" if number + columns >= len(panels) else "")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    title = f"{block.setting.network} · recipe {block.setting.recipe} · bars: 95% intervals"
    canvas.suptitle(printable(title), fontsize=9, color="#444444", parse_math=False)
    _legend(block, canvas, axes)


def _legend(block: Block, canvas: matplotlib.figure.Figure, axes: Iterable[matplotlib.axes.Axes]) -> None:
    """Draw one legend for all panels, below them."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = [name for name in _names(block) if name in handles]
    columns = math.ceil(len(names) / _legend_lines(block, _size(block)[0]))
    legend = canvas.legend(
        [handles[name] for name in names],
        [printable(name) for name in names],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=2.6,
        columnspacing=1.6,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _names(block: Block) -> list[str]:
    """Return the methods that are drawn, horizontal lines first: the order of colors and of the legend."""
    drawn = [row for row in block.rows if any(entry.done for entry in row.replicates.values())]
    return list(dict.fromkeys(row.label for row in sorted(drawn, key=lambda row: not _level(row))))


def _level(row: MethodRow) -> bool:
    """Return whether a method trains nothing in the backbone."""
    return all(record.counts is None or record.counts.trainable == 0 for record in row.records)


# --- one panel -----------------------------------------------------------------------------------------------------


def _panel(axis: matplotlib.axes.Axes, block: Block, datasets: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415 - `peftbench list` loads every report

    names = _names(block)
    levels = [row.label for row in block.rows if _level(row)]
    curves = _curves(block, datasets)
    shifts = _apart({name: points for name, points in curves.items() if name not in levels})
    trained = [name for name in names if name not in levels]
    for name, points in curves.items():
        if name in levels:
            _line(axis, name, points[0], levels.index(name))
        else:
            _curve(axis, name, points, trained.index(name), shifts)
    axis.set_xscale("log")
    if shares := [share for _, share in shifts]:
        axis.set_xlim(min(shares) / _ROOM, max(shares) * _ROOM)
    axis.xaxis.set_major_locator(LogLocator(numticks=8))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))


def _curves(block: Block, datasets: Sequence[str]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = defaultdict(list)
    for row in block.rows:
        for point in _points(row, datasets):
            found[row.label].append(point)
    return {name: sorted(points) for name, points in found.items()}


def _points(row: MethodRow, datasets: Sequence[str]) -> Iterator[Point]:
    """Yield one point, none if a data set is missing."""
    score = row.estimate(datasets)
    if score is None or math.isnan(score.value):
        return
    shares = [
        summary.trainable_share(record) for name in datasets for record in row.replicates[name].records if record.counts
    ]
    yield sum(shares) / max(1, len(shares)), score.value, score.interval.low, score.interval.high


def _line(axis: matplotlib.axes.Axes, name: str, point: Point, number: int) -> None:
    grey = "#222222" if number % 2 == 0 else "#888888"
    axis.axhline(100 * point[1], label=name, color=grey, linestyle=DASHES[number % len(DASHES)], linewidth=1.2)


def _curve(
    axis: matplotlib.axes.Axes,
    name: str,
    points: Sequence[Point],
    number: int,
    shifts: Mapping[tuple[str, float], float],
) -> None:
    """Draw a curve, or a single point, with its intervals."""
    axis.errorbar(
        [share * 10 ** shifts[name, share] for share, *_ in points],
        [100 * score for _, score, *_ in points],
        # A percentile interval need not hold the score itself: its bar then only goes the other way.
        yerr=[
            [100 * max(0.0, score - low) for _, score, low, _ in points],
            [100 * max(0.0, high - score) for _, score, _, high in points],
        ],
        label=name,
        color=COLORS[number % len(COLORS)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.6,
        elinewidth=0.9,
    )


def _apart(curves: Mapping[str, Sequence[Point]]) -> dict[tuple[str, float], float]:
    """Return by how many decades each point is moved sideways, so that points of similar share do not overlap."""
    points = sorted((math.log10(share), share, name) for name, found in curves.items() for share, *_ in found)
    clusters: list[list[tuple[float, float, str]]] = []
    for point in points:
        if not clusters or point[0] - clusters[-1][-1][0] > _NEAR:
            clusters.append([])
        clusters[-1].append(point)
    return {key: shift for cluster in clusters for key, shift in _spread(cluster)}


def _spread(cluster: Sequence[tuple[float, float, str]]) -> Iterator[tuple[tuple[str, float], float]]:
    middle = sum(place for place, *_ in cluster) / len(cluster)
    for number, (place, share, name) in enumerate(cluster):
        yield (name, share), middle + _NEAR * (number - (len(cluster) - 1) / 2) - place


plugin = Figure()
