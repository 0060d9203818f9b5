"""GitHub's tables, the first tier in bold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peftbench.core.contract import Result
from peftbench.results.formatting import Cell
from peftbench.results.tables import Table, tables

_MARKS = {"": "{}", "best": "**{}**"}


@dataclass(frozen=True)
class Markdown:
    """`tables.md`: every table under a heading, its caption below it."""

    suffix: ClassVar[str] = ".md"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write into `out`."""
        file = out / "tables.md"
        file.write_text("\n".join(_section(table) for table in tables(results)), encoding="utf-8")
        return [file]


def _section(table: Table) -> str:
    from tabulate import tabulate  # noqa: PLC0415 - `peftbench list` loads every report and answers at once

    grid = tabulate(
        [[_cell(cell) for cell in row] for row in table.rows],
        [_escaped(column) for column in table.columns],
        tablefmt="github",
        disable_numparse=True,
        colalign=["left" if table.flush_left(column) else "right" for column in table.columns],
    )
    return f"## {_escaped(table.subject)} · {_escaped(table.setting)}\n\n{grid}\n\n{_escaped(table.caption)}\n"


def _cell(cell: Cell) -> str:
    text = _MARKS[cell.mark].format(_escaped(cell.text))
    return f"{text} {_escaped(cell.aside)}".strip()


def _escaped(text: str) -> str:
    """With what Markdown would take for its own made harmless; a line break would end the row."""
    return re.sub(r"([\\`*_|<>])", r"\\\1", " ".join(text.split()))


plugin = Markdown()
