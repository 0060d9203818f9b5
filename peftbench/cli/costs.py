"""What `peftbench measure` and `peftbench plan` print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from peftbench.benchmarks import forecast, measure
from peftbench.core.spec import Places, Study
from peftbench.core.syntax import parse
from peftbench.profiling import hardware
from peftbench.profiling.history import Measured
from peftbench.results import formatting
from peftbench.results.store import make_room
from peftbench.storage import files
from peftbench.storage.sizes import format_size

NONE = formatting.NONE
_APART = ("recipe", "memory", "memory is", "seconds")  # of a planned job, not shown as they are
_MINUTE, _HOUR = 60, 3600  # seconds
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


# --- measure ---------------------------------------------------------------------------------------------------------

Show = Callable[[Measured, Measured], str]  # of a row, beside that of full fine-tuning


def _over(get: Callable[[Measured], float], show: Callable[[float], str]) -> Show:
    """A figure and its ratio to full fine-tuning's."""
    return lambda row, full: f"{show(get(row))} ({get(row) / get(full):.2f})"


COSTS: Mapping[str, Show] = MappingProxyType(
    {
        "method": lambda row, _: row.method,
        "trained": lambda row, _: f"{row.trainable:,}",
        "GFLOPs forward": _over(lambda row: row.flops_forward, formatting.format_giga),
        "training": _over(lambda row: row.flops_training, formatting.format_giga),
        "held": _over(lambda row: row.memory.total, format_size),
        "images/s training": _over(lambda row: row.images_per_second, formatting.format_rate),
        "prediction": _over(lambda row: row.predicted_per_second, formatting.format_rate),
        "delta": lambda row, _: format_size(row.delta_bytes),
    }
)


def _ms(name: str) -> Callable[[Measured], str]:
    """Milliseconds, p50 / p95 of so many runs."""

    def shown(row: Measured) -> str:
        one = row.latency.get(name)
        return f"{1e3 * one.p50:,.1f} / {1e3 * one.p95:,.1f} ({one.runs})" if one else NONE

    return shown


TIMES: Mapping[str, Callable[[Measured], str]] = MappingProxyType(
    {
        "method": lambda row: row.method,
        "steps": lambda row: str(row.steps),
        "selection": lambda row: f"{row.selection_seconds:.2f} s of {row.selection_images}",
        "ms at 1": _ms("1"),
        "merged": _ms("1 merged"),
        "ms at 64": _ms("64"),
        "merged at 64": _ms("64 merged"),
    }
)
PARTS = ("weights", "gradients", "optimizer", "activations", "pixels")


def show_measure(asked: Study, places: Places, seconds: float, out: Path | None, *, as_json: bool) -> None:
    """Measure, print a row a method and write them with the machine they were taken on."""
    if out:
        make_room(out)
    rows: list[Measured] = []
    for row in measure.table(asked, places, seconds):
        rows.append(row)
        if not as_json:
            console.print(
                f"{row.method}: {formatting.format_rate(row.images_per_second)} images/s in training", markup=False
            )
    found = {"environment": hardware.environment(places.device), "threads": asked.threads, "rows": _plain(rows)}
    if out:
        files.write_json(out, found)
    if as_json:
        console.print_json(json.dumps(found))
        return
    for screen in (_costs(rows), _times(rows), _memory(rows)):
        console.print(screen)
    for line in _explained(rows, places.device, asked.threads):
        console.print(line, markup=False)


def _plain(rows: Sequence[Measured]) -> list[dict[str, Any]]:
    return [row.model_dump(mode="json") for row in rows]


def _costs(rows: Sequence[Measured]) -> Table:
    title = "Cost of a method on this machine; in brackets over full fine-tuning"
    return _table(title, list(COSTS), [[show(row, rows[0]) for show in COSTS.values()] for row in rows])


def _times(rows: Sequence[Measured]) -> Table:
    title = "Steps timed, seconds of selection and images it looked at, latency p50 / p95 (runs)"
    return _table(title, list(TIMES), [[show(row) for show in TIMES.values()] for row in rows])


def _memory(rows: Sequence[Measured]) -> Table:
    title = f"What a training step of {rows[0].batch} images holds, counted; the peak as measured"
    found = [[*(getattr(row.memory, part) for part in (*PARTS, "total")), row.peak_memory] for row in rows]
    cut = [[row.method, *map(format_size, sizes)] for row, sizes in zip(rows, found, strict=True)]
    return _table(title, ["method", *PARTS, "held", "peak"], cut)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    screen = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        screen.add_column(column, justify="left" if column == "method" else "right", overflow="fold")
    for row in rows:
        screen.add_row(*map(formatting.escape_markup, row))
    return screen


def _explained(rows: Sequence[Measured], device: str, threads: int) -> list[str]:
    """How the figures came about."""
    threaded = f", {threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else ""
    stored = [row.method for row in rows if row.stored]
    where = hardware.environment(device)["hardware"]
    return [
        f"{where}{threaded}; random images and labels, {rows[0].batch} a training step.",
        "GFLOPs of an image; a multiply-add is two. Held: by a training step. Prediction: at batch 64, merged.",
        *([f"{', '.join(stored)}: the head trains on stored features."] if stored else []),
    ]


# --- plan ------------------------------------------------------------------------------------------------------------


def show_plan(asked: Study, places: Places, *, as_json: bool) -> None:
    """The jobs of a study by name, with counts that need neither weights nor images."""
    rows = forecast.outline(asked, places)
    if as_json:
        console.print_json(json.dumps(rows))
        return
    same = {name for name in ("steps", "trials") if len({row[name] for row in rows}) == 1}
    apart = (*_APART, *same, *(() if asked.ratios else ("targets",)))
    shown = [_planned(row, apart) for row in rows]
    steps = {row["steps"] for row in rows}
    each = f" of {steps.pop():,} steps" if len(steps) == 1 and None not in steps else ""
    screen = Table(title=f"{len(rows)} jobs{each}, recipe {rows[0]['recipe']}; ids need the files")
    for column in shown[0]:
        right = isinstance(rows[0].get(column), int) or column == "training"
        screen.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in shown:
        screen.add_row(*(formatting.escape_markup(_cell(value)) for value in row.values()))
    console.print(screen)
    for line in _foretold(rows, asked):
        console.print(line, markup=False)


def _planned(row: Mapping[str, Any], apart: Sequence[str]) -> dict[str, Any]:
    """A row in words: memory with its bound, time in its unit."""
    held = format_size(row["memory"]) if row["memory"] else NONE
    most = "≤ " if row["memory is"] == "at most" else ""
    others = {name: value for name, value in row.items() if name not in apart}
    return {**others, "memory": most + held, "training": NONE if row["seconds"] is None else duration(row["seconds"])}


def _foretold(rows: Sequence[Mapping[str, Any]], asked: Study) -> list[str]:
    """What stands behind memory and time."""
    unknown = list(dict.fromkeys(str(row["method"]) for row in rows if row["seconds"] is None))
    tried = [row for row in rows if row["trials"] and row["seed"] == rows[0]["seed"]]
    trials = sum(row["trials"] for row in tried)
    known = sum(row["seconds"] or 0.0 for row in rows) + sum(row["trials"] * (row["seconds"] or 0.0) for row in tried)
    says = ["Memory: what a training step holds, without the decoded images; ≤ where the method chooses by the data."]
    if trials:
        again = "; where a data set states no test part, each further seed has its own" if len(asked.seeds) > 1 else ""
        says.append(f"Before them: {trials:,} trials of as many steps, which find the learning rates{again}.")
    if known:
        says.append(
            f"Training of the jobs{' and trials' if trials else ''} whose time is known: about {duration(known)}, "
            "one after the other."
        )
    if unknown:
        says.append(
            f"Time unknown for {', '.join(unknown)}: nothing was measured here. `{_advice(rows, asked)}` does it."
        )
    return says


def _advice(rows: Sequence[Mapping[str, Any]], asked: Study) -> str:
    """The command that measures what is unknown; a time does not depend on the weights, so random ones will do."""
    unknown = {parse(str(row["method"])).name for row in rows if row["seconds"] is None}
    methods = ",".join([str(spec) for spec in asked.methods if spec.name in unknown] or sorted(unknown))
    words = ["peftbench measure --methods", f"'{methods}'" if "[" in methods else methods]
    words += ["--ratios", ",".join(asked.ratios)] if asked.ratios else []
    words += ["--backbone", f"{str(rows[0]['backbone']).removesuffix('@random')}@random"]
    words += ["--image-size", str(asked.image_size)] if asked.image_size else []
    words += ["--precision", asked.precision] if asked.precision != "auto" else []
    words += [flag for flag, is_set in (("--compile", asked.compile), ("--graph", asked.graph)) if is_set]
    words += ["--threads", str(asked.threads)] if asked.threads != 1 else []
    return " ".join(words)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.1f} h"


def _cell(value: object) -> str:
    """Thousands apart, several numbers in one cell."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_cell, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
