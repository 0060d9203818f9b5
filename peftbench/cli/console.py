"""The one place that makes rich consoles, tables and progress bars.

Text from outside (names of classes, methods, data sets and files) is printed as it is: markup and emoji codes are off,
and control characters are shown by their number, so that no name changes the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from peftbench.results.text import printable

if TYPE_CHECKING:  # rich takes longer to import than `peftbench --help` takes in all
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from rich.text import Text

WIDTH = 120  # columns, where the output is no terminal


@cache
def output() -> Console:
    """Return the console on stdout."""
    return _console(stderr=False)


@cache
def errors() -> Console:
    """Return the console on stderr, for what is no part of a verb's answer."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console as RichConsole

    class Console(RichConsole):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704 - rich calls it where it has caught the error, and would end the program

    stream = sys.stderr if stderr else sys.stdout
    default = None if stream.isatty() else WIDTH
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=default)


def say(line: str, *, style: str = "", to: Console | None = None) -> None:
    """Print one line, never wrapped, on stdout or on the console `to`."""
    if to or style:
        console = to or output()
        console.print(printable(line), style=style or None, soft_wrap=True, markup=False, emoji=False, highlight=False)
    else:
        _write(printable(line))


def warn(line: str) -> None:
    """Print one line on stderr, under the name of the program."""
    say(f"peftbench: {line}", to=errors())


def show_json(value: object) -> None:
    """Print a value as JSON on stdout; what JSON does not know becomes a string."""
    output().print_json(json.dumps(value, default=str))


def show(table: Table) -> None:
    """Print a table on stdout, in the width of the terminal."""
    output().print(table)


def show_listing(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header: in a terminal as a table of its width, else each on one line, as for `grep`."""
    if sys.stdout.isatty():
        show(make_table(columns, rows))
    else:
        show_rows(columns, rows)


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header, each on one line whatever the width, for programs and for thousands of rows.

    A rich table takes half a millisecond a row.
    """
    from rich.cells import cell_len, set_cell_size

    cells = [columns, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(set_cell_size, row, widths)).rstrip() for row in cells)
    _write("\n".join(lines))


def _write(text: str) -> None:
    """Write to stdout without rich, which takes longer to import than a listing takes in all."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # a reader that is gone is an error here, not when the program ends


def make_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Collection[str] = frozenset(),
    title: str = "",
    ruled: bool = False,
) -> Table:
    """Return a table; the columns named in `right` are set flush right, `ruled` draws a line under the header."""
    table = bare_table(title=title, ruled=ruled)
    for column in columns:
        flush = column in right  # numbers, which are never broken over lines
        table.add_column(printable(column), justify="right" if flush else "left", overflow="fold", no_wrap=flush)
    for row in rows:
        table.add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def bare_table(*, title: str = "", ruled: bool = False) -> Table:
    """Return a table without columns."""
    from rich import box
    from rich.table import Table

    style = box.SIMPLE_HEAD if ruled else None
    return Table(title=printable(title) or None, title_justify="left", box=style, pad_edge=ruled)


def styled(text: str, style: str = "", aside: str = "") -> Text:
    """Return a cell's text in a style, with `aside` dimmed after it."""
    from rich.text import Text

    cell = Text(printable(text), style=style)
    return Text.assemble(cell, " ", (printable(aside), "dim")) if aside else cell


def make_progress(*columns: str, console: Console) -> Progress:
    """Return progress bars that are silent where the console is no terminal.

    A column is `bar`, `count`, `elapsed`, `left`, or a field of the task such as `description`, shown as it is.
    """
    from rich import progress

    known = {
        "bar": progress.BarColumn,
        "count": progress.MofNCompleteColumn,
        "elapsed": progress.TimeElapsedColumn,
        "left": progress.TimeRemainingColumn,
    }
    made = [
        known[name]() if name in known else progress.TextColumn(f"{{task.{name}}}", markup=False) for name in columns
    ]
    return progress.Progress(*made, console=console, disable=not console.is_terminal)
