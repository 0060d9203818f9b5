"""`peftbench doctor`: what this machine can run, one line a part, with a fix for what lacks."""

from __future__ import annotations

import typer

from peftbench.cli.console import say, show_json
from peftbench.cli.options import STORE, CacheOption, DataOption, JsonOption, StoreOption


def doctor(
    data: DataOption = None, cache: CacheOption = None, store: StoreOption = STORE, json: JsonOption = False
) -> None:
    """Check what this machine can run. Exit code 0 unless nothing can."""
    from dataclasses import asdict

    from peftbench.benchmarks.doctor import can_run, examine

    found = examine(data, cache, store)
    if json:
        show_json([asdict(check) for check in found])
    else:
        for check in found:
            fix = f". {check.fix}" if check.fix else ""
            say(f"{check.state:<8} {check.part}: {check.found}{fix}")
        say("missing: optional; studies run without it." if can_run(found) else "broken: no study can run here.")
    raise typer.Exit(0 if can_run(found) else 1)
