"""Every figure as a file for papers and slides: `figure` (score against trainable share) and the folder `figures`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peftbench.core.contract import Result
from peftbench.reports._charts import Chart, charts
from peftbench.results import summary
from peftbench.results.summary import Block
from peftbench.results.vega import save

MAIN = "figure"  # the chart that lies beside the tables; the others lie in a folder


@dataclass(frozen=True)
class Figure:
    """SVG, PDF and PNG of every chart; numbered where the results have several settings."""

    suffix: ClassVar[str] = ".png"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write the figures into the folder `out` and return their paths; a setting without a finished job has none."""
        return _write(results, out, charts)

    def write_main(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write only the score against the trainable share into the folder `out` and return the paths."""
        return _write(results, out, lambda block: charts(block, [MAIN]))


def _write(results: Sequence[Result], out: Path, draw: Callable[[Block], list[Chart]]) -> list[Path]:
    drawn = [(block, found) for block in summary.summarize(results) if (found := draw(block))]
    files: list[Path] = []
    for number, (block, found) in enumerate(drawn, 1):
        mark = f"_{number}" if len(drawn) > 1 else ""
        for chart in found:
            folder = out if chart.name == MAIN else out / "figures"
            folder.mkdir(exist_ok=True)
            files += _save(chart, block, folder / f"{chart.name}{mark}")
    return files


def _save(chart: Chart, block: Block, stem: Path) -> list[Path]:
    spec = chart.whole
    return save({**spec, "title": {**spec["title"], "subtitle": _setting(block)}}, stem)


def _setting(block: Block) -> str:
    return f"{block.setting.network}; recipe {block.setting.recipe}"


plugin = Figure()
