"""One page that opens anywhere, offline: answers in words, tables that sort and filter, interactive figures.

Scripts are part of the file: Vega, which draws the figures, and thirty lines that sort and filter tables. Without
scripts the page still shows every word and table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from peftbench.core.contract import Result
from peftbench.reports._charts import Chart, charts
from peftbench.results import summary
from peftbench.results.answers import answers
from peftbench.results.tables import tables
from peftbench.results.vega import SCHEMA, script
from peftbench.storage.files import write_text

TEMPLATE = "_page.html.jinja"


@dataclass(frozen=True)
class Html:
    """`page.html`: answers, figures, then every table with its caption."""

    suffix: ClassVar[str] = ".html"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write the page into the folder `out` and return its path."""
        from jinja2 import Environment, FileSystemLoader  # noqa: PLC0415 - `peftbench list` loads every report

        blocks = summary.summarize(results)
        drawn = [(f"{block.setting.network}; recipe {block.setting.recipe}", charts(block)) for block in blocks]
        templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
        page = templates.get_template(TEMPLATE).render(
            answers=answers(results),
            tables=tables(results),
            settings=[(setting, [_figure(chart) for chart in found]) for setting, found in drawn],
            vega=script() if any(found for _, found in drawn) else "",
        )
        file = out / "page.html"
        write_text(file, page)
        return [file]


def _figure(chart: Chart) -> dict[str, Any]:
    """Return what the template shows of a chart: its panels as specifications that are as wide as the page allows."""
    panels = {title: {"$schema": SCHEMA, **spec, "width": "container"} for title, spec in chart.panels.items()}
    return {
        "name": chart.name,
        "title": chart.title,
        "caption": chart.caption,
        "panels": {title: _in_script(spec) for title, spec in panels.items()},
    }


def _in_script(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return JSON that may stand in a script element: no text in it can end the element."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


plugin = Html()
