"""What the verbs print: a live display while a study runs, tables at its end. Calls the study; decides nothing."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from peftbench.benchmarks import bench, bench_gpu, gates
from peftbench.cli.progress import Bars, counters
from peftbench.core.record import Record
from peftbench.core.registry import registry
from peftbench.core.spec import Job, Places, Study
from peftbench.errors import RequestError
from peftbench.execution import local
from peftbench.inference import predict
from peftbench.profiling import hardware
from peftbench.results import tables
from peftbench.results.store import Store, make_room
from peftbench.storage import files
from peftbench.study import defaults
from peftbench.study import resolve as studies

SHORT = {"md": "markdown", "tex": "latex", "png": "figure"}
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def run_study(asked: Study, places: Places, jobs: int, *, skip_broken: bool) -> int:
    """Run what is not done, end with a table; 0 when all is done, 1 when some jobs failed."""
    started = time.perf_counter()
    store = Store(places.store)
    new = store.prepare()
    try:
        with Bars(console) as bars:
            resolved = studies.resolve(asked, places, skip_broken=skip_broken, watch=bars)
    except BaseException:
        if new:
            store.discard()
        raise
    for line in resolved.says:
        _say(line)
    count = jobs or (hardware.cards() if places.device == "cuda" else hardware.cores())
    trials = list({t.id: t for draft in resolved.drafts for t in draft.trials}.values())
    _run_jobs("trials", trials, places, count)
    finals = [draft.final(store) for draft in resolved.drafts]
    studies.note_study(resolved, finals, store)
    _run_jobs("jobs", finals, places, count)
    return _conclude(finals, store, time.perf_counter() - started)


def _run_jobs(what: str, jobs: Sequence[Job], places: Places, count: int) -> None:
    store = Store(places.store)
    todo = [job for job in jobs if store.job(job.id).state() != "done"]
    if len(todo) < len(jobs):
        _say(f"{len(jobs) - len(todo)} of {len(jobs)} {what} were done before.")
    if not todo:
        return
    with Board(what, todo) as board:
        local.run_all(todo, places, count, board.tick, board.done)


def _say(line: str) -> None:
    """One line as it is: neither markup nor line breaks."""
    console.print(line, markup=False, soft_wrap=True)


class Board:
    """Progress: bars in a terminal, plain lines elsewhere."""

    def __init__(self, what: str, jobs: Sequence[Job]) -> None:
        self._jobs = {job.id: job for job in jobs}
        self._bars = counters(console)
        self._all = self._bars.add_task(what, total=len(jobs), note="")
        self._of: dict[str, TaskID] = {}
        self._finished = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tick(self, tick: local.Tick) -> None:
        """A job went on."""
        job = self._jobs[tick.job_id]
        if job.id not in self._of:
            self._of[job.id] = self._bars.add_task(f"  {_name(job)}", total=job.recipe.steps, note="")
        best = f", best {tick.best:.3f}" if tick.best is not None else ""
        self._bars.update(self._of[job.id], completed=tick.step, note=f"{tick.rate:.0f} images/s{best}")

    def done(self, job: Job, record: Record) -> None:
        """A job ended."""
        self._finished += 1
        if job.id in self._of:
            self._bars.remove_task(self._of.pop(job.id))
        self._bars.update(self._all, completed=self._finished)
        if not console.is_terminal or record.status == "failed":
            _say(f"[{self._finished}/{len(self._jobs)}] {_name(job)}: {_outcome(record)}")


def _name(job: Job) -> str:
    random = " (random weights)" if job.backbone.endswith("@random") else ""
    size = f" @ {job.target:,}" if job.target is not None else ""
    trial = f" lr {job.recipe.lr:g}" if job.role == "trial" else ""
    cut = f" ({job.variant})" if str(job.variant) else ""
    return f"{job.label}{random}{size} on {job.dataset}{cut}, seed {job.seed}{trial}"


def _outcome(record: Record) -> str:
    if record.status == "failed":
        return f"FAILED: {record.reason}"
    choice = record.choices[record.rule]
    part, scores = ("validation", choice.val) if record.role == "trial" else ("test", choice.test)
    value = scores.get("macro_f1")
    return f"{part} macro F1 {value:.3f}, {record.costs.seconds if record.costs else 0:.0f} s"


def _conclude(finals: Sequence[Job], store: Store, seconds: float) -> int:
    ids = {job.id for job in finals}
    results = [result for job in finals if (result := store.job(job.id).result()) is not None]
    failed = [r.record for r in results if r.record.status == "failed"]
    console.print(tables.terminal(results))
    for line in tables.caption(results):
        _say(line)
    for record in failed:
        _say(f"FAILED {record.label} on {record.data.name}: {record.reason}")
    figures = registry("reports").get("figure").write(results, store.root) if len(failed) < len(results) else []
    for file in figures:
        _say(f"Figure: {file}")
    console.print(
        f"{len(ids) - len(failed)} of {len(ids)} jobs done in {seconds:.0f} s; results in {store.root}.", markup=False
    )
    _say(f"Next: peftbench report {store.root}")
    return 1 if failed else 0


def write_report(root: Path, formats: str, out: Path) -> None:
    """Write every format asked for and say where."""
    results = Store(root).results()
    if not [r for r in results if r.record.role == "final"]:
        raise RequestError(f"No job in {root} has ended yet; `peftbench status {root}` says how far they are.")
    names = [SHORT.get(name.strip(), name.strip()) for name in formats.split(",") if name.strip()]
    writers = [registry("reports").get(name) for name in names]
    if not writers:
        raise RequestError(f"--format {formats!r} names none; there are {', '.join(registry('reports').names())}.")
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder for the report.")
    out.mkdir(parents=True, exist_ok=True)
    for writer in writers:
        for file in writer.write(results, out):
            _say(str(file))


def show_status(root: Path, *, as_json: bool) -> None:
    """How many jobs are in which state, why some failed, and every job but the trials by its id."""
    store = Store(root)
    states = {job.id: job.state() for job in store.jobs()}
    if as_json:
        console.print_json(json.dumps(states))
        return
    for state, count in sorted(Counter(states.values()).items()):
        _say(f"{count:5d} {state}")
    for name in (n for n, state in states.items() if state == "failed"):
        record = store.job(name).record()
        _say(f"{name} {record.label if record else ''}: {record.reason if record else ''}")
    finals = {name: state for name, state in states.items() if not _is_trial(store, name)}
    if len(finals) < len(states):
        _say(f"{len(states) - len(finals)} of them are trials of learning rates, which are not listed.")
    for line in _columns(sorted((_listed(store, *one) for one in finals.items()), key=_by_data)):
        _say(line)


def _by_data(row: tuple[str, ...]) -> tuple[str, ...]:
    """What it is sorted by: data set, method, seed."""
    return row[3], row[2], *row[4:]


def _is_trial(store: Store, name: str) -> bool:
    record = store.job(name).record()
    return record is not None and record.role == "trial"


def _listed(store: Store, name: str, state: str) -> tuple[str, ...]:
    """A job's id, which `predict` and `merge` want, beside what it is."""
    record = store.job(name).record()
    if record is None:
        return (name, state, *_begun(store.job(name).request_file))
    trained = f"{record.counts.trainable:,}" if record.counts else ""
    return (name, state, record.label, record.data.name, f"seed {record.seed}", trained)


def _begun(file: Path) -> tuple[str, ...]:
    """Of a job without a record: its method, data set and seed, as far as it came to write them down."""
    try:
        told = json.loads(file.read_bytes())
        return (str(told["alias"] or told["method"]), str(told["dataset"]), f"seed {told['seed']}", "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ("", "", "", "")


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows under a header, every column as wide as its widest cell."""
    table = [("job", "state", "method", "data set", "", "trained"), *rows] if rows else []
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(set_cell_size, row, widths)).rstrip() for row in table]


def merge_job(job: str, out: Path, store: Path, weights: Path | None) -> None:
    """Write one file of weights and say how equal it is."""
    make_room(out)
    off = predict.merge(predict.find_job(store, job), defaults.places(store, weights=weights, device="cpu"), out)
    _say(f"{out}: plain timm weights with the head; the logits differ by {off:.1e} of their size.")
    _say(f"{out}.json: classes, preprocessing, what stands before the head, and where the weights come from.")


def predict_images(
    job: str, images: Sequence[Path], store: Path, weights: Path | None, device: str, out: Path | None, *, as_json: bool
) -> None:
    """Print or write probabilities; warnings go to the terminal too."""
    if out:
        make_room(out)
    model = predict.open_model(predict.find_job(store, job), defaults.places(store, weights=weights, device=device))
    found = list(model.predict(predict.find_images(images)))
    text = predict.as_json(model, found) if as_json else predict.as_csv(model, found)
    if out is None:
        sys.stdout.write(text)
        return
    files.write_text(out, text)
    warned = [one for one in found if one.warnings]
    _say(
        f"{out}: {len(found)} image{'' if len(found) == 1 else 's'}"
        + (f", {len(warned)} with warnings" if warned else "")
        + "."
    )
    for one in warned[:5]:
        _say(f"  {one.image}: {'; '.join(one.warnings)}")


def show_bench(device: str, out: Path | None) -> int:
    """Print every gate of the device; 1 when one that decides is broken. Raises RequestError without such a device."""
    found = defaults.find_device(device)
    figures = bench.run() if found == "cpu" else list(bench_gpu.run(bench_gpu.Rig(torch.device(found))))
    table = Table("", "figure", "value", "bound")
    for gate in figures:
        sign = ">=" if gate.at_least else "<="
        table.add_row("PASS" if gate.passed else "FAIL", gate.name, f"{gate.value:.3g}", f"{sign} {gate.bound:g}")
    console.print(table)
    if out:
        gates.write(figures, found, out)
    return 1 if any(gate.decides and not gate.passed for gate in figures) else 0
