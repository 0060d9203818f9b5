"""`peftbench report`: write tables and figures from the jobs of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from peftbench.cli.console import say
from peftbench.cli.options import STORE, StoreArgument
from peftbench.errors import RequestError

DEFAULT_FORMATS = ["markdown,latex,csv,figure,html"]
SHORT_NAMES: Mapping[str, str] = MappingProxyType({"md": "markdown", "tex": "latex", "png": "figure"})

FormatOption = Annotated[list[str], typer.Option("--format", help="Some of markdown (md), latex, csv, figure, html.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to write to; default: reports/STORE.")]


def report(store: StoreArgument = STORE, formats: FormatOption = DEFAULT_FORMATS, out: OutOption = None) -> None:
    """Write tables and figures from finished jobs. Nothing is trained."""
    names = [name.strip() for text in formats for name in text.split(",") if name.strip()]
    write_report(store, names, out or Path("reports") / store.resolve().name)


def write_report(root: Path, formats: Sequence[str], out: Path) -> None:
    """Write the formats into the folder `out` and print each file's name. Raises RequestError."""
    from peftbench.core.registry import registry
    from peftbench.results.store import Store

    results = Store(root).results()
    if not any(result.record.role == "final" for result in results):
        raise RequestError(f"{root} holds no finished job; `peftbench status {root}` lists the unfinished ones.")
    writers = [registry("reports").get(SHORT_NAMES.get(name, name)) for name in formats]
    if not writers:
        raise RequestError(f"--format names no format; choose from {', '.join(registry('reports').names())}.")
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder for the report.")
    out.mkdir(parents=True, exist_ok=True)
    for writer in writers:
        for file in writer.write(results, out):
            say(str(file))
