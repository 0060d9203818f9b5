"""Tables in GitHub's Markdown, the first tier in bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peftbench.core.contract import Result
from peftbench.results.formatting import Cell
from peftbench.results.table import Table
from peftbench.results.tables import tables
from peftbench.results.text import markdown_text
from peftbench.storage.files import write_text

_MARKS = {"": "{}", "best": "**{}**"}


@dataclass(frozen=True)
class Markdown:
    """`tables.md`: every table under a heading, its caption below it."""

    suffix: ClassVar[str] = ".md"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write the tables into the folder `out` and return the file's path."""
        file = out / "tables.md"
        write_text(file, "\n".join(_section(table) for table in tables(results)))
        return [file]


def _section(table: Table) -> str:
    from tabulate import tabulate  # noqa: PLC0415 - `peftbench list` loads every report

    grid = tabulate(
        [[_cell(cell) for cell in row] for row in table.rows],
        [markdown_text(column) for column in table.columns],
        tablefmt="github",
        disable_numparse=True,
        colalign=["left" if table.flush_left(column) else "right" for column in table.columns],
    )
    heading = f"{markdown_text(table.subject)} · {markdown_text(table.setting)}"
    return f"## {heading}\n\n{grid}\n\n{markdown_text(table.caption)}\n"


def _cell(cell: Cell) -> str:
    text = _MARKS[cell.mark].format(markdown_text(cell.text))
    return f"{text} {markdown_text(cell.aside)}".strip()


plugin = Markdown()
