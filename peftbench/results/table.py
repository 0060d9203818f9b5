"""One table, before it becomes Markdown, LaTeX, HTML or terminal output."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peftbench.results.formatting import Cell

WORDS = frozenset(  # columns that hold words
    {"method", "data set", "notes", "reason", "title", "task", "classes", "split", "audit", "fact", "value"}
    | {"type", "model"}
)


@dataclass(frozen=True)
class Table:
    """One table, ready to be written in any format."""

    name: str  # for files and labels: letters, digits and _
    subject: str  # "busi", "average (3 of 6)"
    setting: str  # backbone and image size
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def flush_left(self, column: str) -> bool:
        """Return whether a column holds words, which are aligned left; numbers are aligned right."""
        return column in WORDS


def stem(name: str) -> str:
    """Return a name as part of a file's name or of a label."""
    return re.sub(r"\W+", "_", name).strip("_")


def transposed(facts: dict[str, list[Cell]]) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Return columns and rows of a table that is given by its columns."""
    return tuple(facts), tuple(zip(*facts.values(), strict=True))
