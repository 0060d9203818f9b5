"""The verbs `peftbench data ...`. Imports nothing heavy before a verb needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Fetch and audit data sets.", rich_markup_mode=None)

DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="PEFTBENCH_DATA", help="Folder that holds the data sets.")
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", envvar="PEFTBENCH_CACHE", help="Folder for decoded images and estimates.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.callback()
def _group() -> None:
    """Keeps `check` a verb of its own while it is the only one."""


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A data set, or folder:PATH.")],
    data: DataOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,  # noqa: FBT002 - typer's way of flags
) -> None:
    """Audit a data set before anything trains: leaks between parts, doubles, contradictions, broken files."""
    from peftbench.show_data import check_data  # noqa: PLC0415 - heavy

    check_data(name, data, cache, as_json=json)
