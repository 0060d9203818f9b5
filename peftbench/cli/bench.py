"""`peftbench bench`: the speed and memory gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftbench.cli.console import make_table, show
from peftbench.cli.options import DeviceOption

if TYPE_CHECKING:
    from peftbench.benchmarks.gates import Gate


def bench(
    out: Annotated[Path | None, typer.Option("--out", help="Write the figures to this JSON file.")] = None,
    device: DeviceOption = "auto",
    store: Annotated[
        bool, typer.Option("--store", help="Instead: status, report and run on a store of 10,000 made-up jobs.")
    ] = False,
) -> None:
    """Measure the speed and memory gates. Only equality and memory decide the exit code."""
    raise typer.Exit(show_bench(device, out, store=store))


def show_bench(device: str, out: Path | None, *, store: bool = False) -> int:
    """Print every gate of the device, or of a large store; return 1 when one that decides is broken.

    Raises RequestError when this machine has no such device.
    """
    import torch

    from peftbench.benchmarks import bench as cpu
    from peftbench.benchmarks import bench_gpu, bench_store, gates
    from peftbench.study.defaults import find_device

    found = find_device(device)
    if store:
        figures = list(bench_store.run())
    else:
        figures = cpu.run() if found == "cpu" else list(bench_gpu.run(bench_gpu.Rig(torch.device(found))))
    show(make_table(("", "figure", "value", "bound"), map(_row, figures), right={"value", "bound"}, ruled=True))
    if out:
        gates.write(figures, found, out)
    return 1 if any(gate.decides and not gate.passed for gate in figures) else 0


def _row(gate: Gate) -> tuple[str, ...]:
    sign = ">=" if gate.at_least else "<="
    return "PASS" if gate.passed else "FAIL", gate.name, f"{gate.value:.3g}", f"{sign} {gate.bound:g}"
