"""`peftbench merge-stores`: the jobs of several stores in a new one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.console import say, warn


def merge_stores(
    stores: Annotated[list[Path], typer.Argument(help="Two stores or more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Store to make; jobs that it holds already stay.")],
    with_private: Annotated[
        bool, typer.Option("--with-private", help="Copy image names and group keys, too, which --folds needs.")
    ] = False,
) -> None:
    """Merge stores: jobs by id, each verified. Exit code 1 if results of one job differ between stores."""
    from peftbench.results.merging import merge

    merged = merge(stores, out, with_private=with_private)
    for name, why in merged.left_out.items():
        say(f"Left out {name}: {why}.")
    for name, why in merged.conflicts.items():
        warn(f"Conflict in job {name}: {why}; the copy in {out} stays.")
    same = f", {len(merged.equal)} in several stores with equal results" if merged.equal else ""
    say(f"{len(merged.copied)} jobs copied to {out}{same}, {len(merged.conflicts)} conflicts.")
    say(f"Next: peftbench report {shlex.quote(str(out))}")
    raise typer.Exit(1 if merged.conflicts else 0)
