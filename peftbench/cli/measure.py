"""`peftbench measure`: what each method costs on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from peftbench.cli.console import make_table, say, show, show_json
from peftbench.cli.options import (
    BackboneOption,
    CacheOption,
    CompileOption,
    DeviceOption,
    GraphOption,
    JsonOption,
    MethodsOption,
    PrecisionOption,
    RatiosOption,
    SizeOption,
    WeightsOption,
    grouped,
)
from peftbench.cli.weights import fetch_missing

if TYPE_CHECKING:
    from rich.table import Table

    from peftbench.core.spec import Places, Study
    from peftbench.profiling.history import Measured

METHODS = "linear,bitfit,lora,shpeft"
PARTS = ("weights", "gradients", "optimizer", "activations", "pixels")  # of the memory that a training step holds


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured; every field is a field of `core.spec.Study`."""

    methods: MethodsOption = field(default_factory=lambda: [METHODS])
    ratios: RatiosOption = None
    backbone: BackboneOption = "mini"
    image_size: SizeOption = None
    batch: Annotated[
        int | None, typer.Option("--batch", help="Images per training step; default: 64 on a GPU, 8 on a CPU.")
    ] = None
    precision: PrecisionOption = "auto"
    compile: CompileOption = None
    graph: GraphOption = None
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = 1


@grouped
def measure(
    options: MeasureOptions,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    seconds: Annotated[float, typer.Option(min=0.0, max=3600.0, help="Duration of each timing.")] = 2.0,
    cache: CacheOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the figures to this JSON file.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure what each method costs on this machine. Operations, memory, speed and latency; needs no data."""
    from peftbench.cli.options import STORE
    from peftbench.core.spec import read_study

    study = read_study(None, asdict(options))
    from peftbench.study.defaults import places

    fetch_missing(study.backbone, weights)
    show_measure(study, places(STORE, None, cache, weights, device), seconds, out, as_json=json)


def show_measure(study: Study, places: Places, seconds: float, out: Path | None, *, as_json: bool) -> None:
    """Measure every method, print its row and write all rows with the machine they were taken on."""
    from peftbench.benchmarks import measure as benchmark
    from peftbench.profiling import hardware
    from peftbench.results import formatting
    from peftbench.results.store import make_output_folder
    from peftbench.storage import files

    if out:
        make_output_folder(out)
    rows: list[Measured] = []
    for row in benchmark.table(study, places, seconds):
        rows.append(row)
        if not as_json:
            say(f"{row.method}: {formatting.format_rate(row.images_per_second)} images/s in training")
    found = {"environment": hardware.environment(places.device), "threads": study.threads, "rows": _plain(rows)}
    if out:
        files.write_json(out, found)
    if as_json:
        show_json(found)
        return
    for table in (cost_table(rows), time_table(rows), memory_table(rows)):
        show(table)
    for line in _notes(rows, places.device, study.threads):
        say(line)


def _plain(rows: Sequence[Measured]) -> list[dict[str, Any]]:
    return [row.model_dump(mode="json") for row in rows]


def _notes(rows: Sequence[Measured], device: str, threads: int) -> list[str]:
    """Return the conditions of the measurement."""
    from peftbench.profiling import hardware

    threaded = f", {threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else ""
    stored = [row.method for row in rows if row.stored]
    where = hardware.environment(device)["hardware"]
    return [
        f"{where}{threaded}; random images and labels, {rows[0].batch} per training step.",
        "GFLOPs per image; a multiply-add is two. Held: memory of a training step. Prediction: batch 64, merged.",
        *([f"{', '.join(stored)}: the head trains on stored features."] if stored else []),
    ]


# --- the tables ------------------------------------------------------------------------------------------------------

Cells: TypeAlias = Mapping[str, Callable[["Measured"], str]]  # by the column's title


def cost_table(rows: Sequence[Measured]) -> Table:
    """Return operations, memory and speed, in parentheses relative to full fine-tuning, the first row."""
    title = "Cost of each method on this machine; in parentheses relative to full fine-tuning"
    return _table(title, _costs(rows[0]), rows)


def _relative(
    full: Measured, get: Callable[[Measured], float], show: Callable[[float], str]
) -> Callable[[Measured], str]:
    """Return what shows a figure and, in parentheses, its ratio to that of full fine-tuning."""
    return lambda row: f"{show(get(row))} ({get(row) / get(full):.2f})"


def _costs(full: Measured) -> Cells:
    from peftbench.results import formatting
    from peftbench.storage.sizes import format_size

    relative = partial(_relative, full)
    return {
        "method": lambda row: row.method,
        "trained": lambda row: f"{row.trainable:,}",
        "GFLOPs forward": relative(lambda row: row.flops_forward, formatting.format_giga),
        "training": relative(lambda row: row.flops_training, formatting.format_giga),
        "held": relative(lambda row: row.memory.total, format_size),
        "images/s training": relative(lambda row: row.images_per_second, formatting.format_rate),
        "prediction": relative(lambda row: row.predicted_per_second, formatting.format_rate),
        "delta": lambda row: format_size(row.delta_bytes),
    }


def time_table(rows: Sequence[Measured]) -> Table:
    """Return steps, seconds of selection and latencies."""
    title = "Timed steps, CPU time of training, seconds of weight selection with its images, latency p50 / p95 (runs)"
    cells: Cells = {
        "method": lambda row: row.method,
        "steps": lambda row: str(row.steps),
        "CPU ms/image": _relative(rows[0], lambda row: 1e3 * (row.cpu_seconds_per_image or 0.0), "{:,.1f}".format),
        "selection": lambda row: f"{row.selection_seconds:.2f} s, {row.selection_images} images",
        "ms at 1": _latency("1"),
        "merged": _latency("1 merged"),
        "ms at 64": _latency("64"),
        "merged at 64": _latency("64 merged"),
    }
    return _table(title, cells, rows)


def _latency(name: str) -> Callable[[Measured], str]:
    """Return what shows a latency: milliseconds, p50 / p95, and the number of runs."""
    from peftbench.results.formatting import NONE

    def shown(row: Measured) -> str:
        one = row.latency.get(name)
        return f"{1e3 * one.p50:,.1f} / {1e3 * one.p95:,.1f} ({one.runs})" if one else NONE

    return shown


def memory_table(rows: Sequence[Measured]) -> Table:
    """Return the counted memory of a training step and the measured peak."""
    from peftbench.storage.sizes import format_size

    title = f"Memory of a training step of {rows[0].batch} images, counted; and the measured peak"
    cells: dict[str, Callable[[Measured], str]] = {"method": lambda row: row.method}
    for part in PARTS:
        cells[part] = lambda row, part=part: format_size(getattr(row.memory, part))  # type: ignore[misc]
    cells["held"] = lambda row: format_size(row.memory.total)
    cells["peak"] = lambda row: format_size(row.peak_memory)
    return _table(title, cells, rows)


def _table(title: str, cells: Cells, rows: Sequence[Measured]) -> Table:
    found = [[show(row) for show in cells.values()] for row in rows]
    return make_table(list(cells), found, right=set(cells) - {"method"}, title=title, ruled=True)
