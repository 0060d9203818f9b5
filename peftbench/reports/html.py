"""One page that opens anywhere: figures and tables in a single file, without scripts and with nothing to fetch."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from peftbench.core.contract import Result
from peftbench.reports import figure
from peftbench.results.formatting import Cell
from peftbench.results.tables import Table, tables

_MARKS = {"": "{}", "best": "<b>{}</b>"}


@dataclass(frozen=True)
class Html:
    """`page.html`: the figures, then every table with its caption."""

    suffix: ClassVar[str] = ".html"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write into `out`."""
        found = tables(results)
        body = [_contents(found), *_pictures(results), *map(_section, found)]
        file = out / "page.html"
        file.write_text(_PAGE.format(body="\n".join(body)), encoding="utf-8")
        return [file]


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>peftbench</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }}
h1, h2 {{ line-height: 1.2; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .5rem; }}
h2 small, .aside, figcaption, footer {{ color: #666; font-weight: normal; }}
nav ul {{ columns: 18rem; padding-left: 1.2rem; }}
img {{ max-width: 100%; height: auto; }}
figure {{ margin: 1.5rem 0; overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }}
thead {{ border-top: 2px solid #222; border-bottom: 1px solid #222; }}
tbody {{ border-bottom: 2px solid #222; }}
th, td {{ padding: .2rem .7rem; text-align: right; }}
.words {{ text-align: left; }}
td.words {{ white-space: normal; min-width: 11rem; }}
tbody tr:hover {{ background: #f3f6fa; }}
.aside {{ font-size: .85em; }}
figcaption {{ margin-top: .5rem; max-width: 60rem; }}
@page {{ size: A4 landscape; margin: 1cm; }}
@media print {{ body {{ font-size: 9px; }} }}
</style>
</head>
<body>
<h1>peftbench</h1>
{body}
<footer>Made by peftbench. For research; not a medical device.</footer>
</body>
</html>
"""


def _contents(found: Sequence[Table]) -> str:
    several = len({table.setting for table in found}) > 1
    titles = [_title(table) if several else escape(table.subject) for table in found]
    links = [f'<li><a href="#{table.name}">{title}</a></li>' for table, title in zip(found, titles, strict=True)]
    return "<nav><ul>\n" + "\n".join(links) + "\n</ul></nav>"


def _pictures(results: Sequence[Result]) -> list[str]:
    """The drawings, each within the page."""
    with TemporaryDirectory() as folder:
        drawn = [file for file in figure.plugin.write(results, Path(folder)) if file.suffix == ".svg"]
        contents = [base64.b64encode(file.read_bytes()).decode() for file in drawn]
    said = "Score against the share of the backbone's weights that is trained"
    return [f'<figure><img alt="{said}" src="data:image/svg+xml;base64,{content}"></figure>' for content in contents]


def _title(table: Table) -> str:
    return f"{escape(table.subject)} <small>{escape(table.setting)}</small>"


def _section(table: Table) -> str:
    words = [' class="words"' if table.flush_left(column) else "" for column in table.columns]
    head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in zip(words, table.columns, strict=True))
    rows = [
        "<tr>" + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(words, row, strict=True)) + "</tr>"
        for row in table.rows
    ]
    return "\n".join(
        [
            f'<section id="{table.name}">',
            f"<h2>{_title(table)}</h2>",
            f"<figure><table>\n<thead><tr>{head}</tr></thead>\n<tbody>",
            *rows,
            f"</tbody>\n</table>\n<figcaption>{escape(table.caption)}</figcaption></figure>",
            "</section>",
        ]
    )


def _cell(cell: Cell) -> str:
    text = _MARKS[cell.mark].format(escape(cell.text))
    return f'{text} <span class="aside">{escape(cell.aside)}</span>' if cell.aside else text


plugin = Html()
