"""`peftbench run`: run the jobs of a study that are not done, then print its table."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Self

import typer

from peftbench.cli.console import bare_table, output, say, show, styled, warn
from peftbench.cli.options import PlaceOptions, ScaleOption, SkipBrokenOption, StudyArgument, StudyOptions, grouped
from peftbench.core.constants import RANDOM_WEIGHTS
from peftbench.core.syntax import is_random
from peftbench.results.text import printable

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table
    from rich.text import Text

    from peftbench.core.contract import Result
    from peftbench.core.record import Costs, Record
    from peftbench.core.spec import Job, Places, Study
    from peftbench.execution.executor import Executor, Tick
    from peftbench.results.formatting import Cell
    from peftbench.results.store import Store
    from peftbench.results.table import Table as ResultTable

COLUMNS = ("macro F1", "ACC", "AUC", "trained", "with head", "seconds", "memory")  # of the table at the end
MARKS: Mapping[str, str] = MappingProxyType({"": "", "best": "bold"})


@grouped
def run(
    options: StudyOptions,
    places: PlaceOptions,
    study: StudyArgument = "",
    scale: ScaleOption = "",
    jobs: Annotated[
        int, typer.Option(min=0, help="Jobs at the same time; 0: one per core on a CPU, one per GPU on GPUs.")
    ] = 0,
    timeout: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds after which a job fails; default: no limit.")
    ] = None,
    skip_broken: SkipBrokenOption = False,
) -> None:
    """Train every method on every data set. Without arguments, the quick study."""
    from peftbench.core.spec import find_study, read_study

    file = find_study(study) if study else None
    found = read_study(file, asdict(options), scale)  # before torch is imported: a typing error is answered at once
    raise typer.Exit(run_study(found, places.found(), jobs, skip_broken=skip_broken, timeout=timeout))


def run_study(study: Study, places: Places, jobs: int, *, skip_broken: bool, timeout: float | None = None) -> int:
    """Run what is not done and print a table; return 0 when every job is done, 1 when some failed or have no record."""
    from peftbench.cli.progress import Bars
    from peftbench.execution.local import LocalExecutor
    from peftbench.profiling import hardware
    from peftbench.results.store import Store
    from peftbench.study.folds import pool_all
    from peftbench.study.resolve import resolve, write_study
    from peftbench.study.tuning import rounds

    started = time.perf_counter()
    store = Store(places.store)
    is_new = store.prepare()
    try:
        with Bars(output()) as bars:
            resolved = resolve(study, places, skip_broken=skip_broken, watch=bars)
    except BaseException:
        if is_new:
            store.discard()
        raise
    for line in resolved.notes:
        say(line)
    workers = jobs or (hardware.gpus() if places.device == "cuda" else hardware.cores())
    executor = LocalExecutor(workers, timeout)
    ended: list[Record] = []
    for number, trials in enumerate(rounds(resolved.drafts, store), 1):
        ended += _run_jobs(f"trials of round {number}", trials, store, places, executor)
    finals = [draft.final(store) for draft in resolved.drafts]
    write_study(resolved, finals, store)
    ended += _run_jobs("jobs", finals, store, places, executor)
    seconds = time.perf_counter() - started
    found = _conclude(pool_all(finals, store), store, seconds)
    if costs := [record.costs for record in ended if record.costs]:
        say(time_account(costs, min(workers, len(ended)), seconds))
    say(f"Next: peftbench report {shlex.quote(str(store.root))}")
    return found


def _run_jobs(what: str, jobs: Sequence[Job], store: Store, places: Places, executor: Executor) -> list[Record]:
    """Run the jobs that are not done; return the records of those that ended."""
    states = {job.id: store.job(job.id).state() for job in jobs}
    for name in (name for name, state in states.items() if state == "damaged"):
        say(f"DAMAGED {name}: {store.job(name).damage()}")
    if done := sum(state == "done" for state in states.values()):
        say(f"{done} of {len(jobs)} {what} were done before.")
    pending = [job for job in jobs if states[job.id] not in {"done", "damaged"}]
    if not pending:
        return []
    with Board(what, pending) as board:
        executor.run(pending, places, board)
    return board.records


class Board:
    """The progress of jobs: bars in a terminal, a line as each job ends elsewhere."""

    def __init__(self, what: str, jobs: Sequence[Job]) -> None:
        from peftbench.cli.progress import counters

        self._jobs = {job.id: job for job in jobs}
        self._bars = counters(output())
        self._total = self._bars.add_task(what, total=len(jobs), note="")
        self._running: dict[str, TaskID] = {}
        self.records: list[Record] = []  # of the jobs that ended

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tick(self, tick: Tick) -> None:
        """Show how far a job is."""
        job = self._jobs[tick.job_id]
        if job.id not in self._running:
            self._running[job.id] = self._bars.add_task(f"  {_name(job)}", total=job.recipe.steps, note="")
        best = f", best {tick.best:.3f}" if tick.best is not None else ""
        self._bars.update(self._running[job.id], completed=tick.step, note=f"{tick.rate:.0f} images/s{best}")

    def ended(self, job: Job, record: Record) -> None:
        """Count a job that ended."""
        self.records.append(record)
        if job.id in self._running:
            self._bars.remove_task(self._running.pop(job.id))
        self._bars.update(self._total, completed=len(self.records))
        if not output().is_terminal or record.status == "failed":
            say(f"[{len(self.records)}/{len(self._jobs)}] {_name(job)}: {_outcome(record)}")

    def warn(self, text: str) -> None:
        """Print a sentence about a process that was lost, on stderr."""
        warn(text)


def _name(job: Job) -> str:
    random = RANDOM_WEIGHTS if is_random(job.backbone) else ""
    size = f" @ {job.target:,}" if job.target is not None else ""
    trial = f" {job.recipe.optimizer} lr {job.recipe.lr:g}" if job.role == "trial" else ""
    cut = f" ({job.variant})" if str(job.variant) else ""
    return printable(f"{job.label}{random}{size} on {job.dataset}{cut}, seed {job.seed}{trial}")


def _outcome(record: Record) -> str:
    if record.status == "failed":
        return f"FAILED: {record.reason}"
    choice = record.choices[record.rule]
    part, scores = ("validation", choice.val) if record.role == "trial" else ("test", choice.test)
    value = scores.get("macro_f1")
    return f"{part} macro F1 {value:.3f}, {record.costs.seconds if record.costs else 0:.0f} s"


# --- the end of a run ------------------------------------------------------------------------------------------------


def _conclude(shown: Sequence[str], store: Store, seconds: float) -> int:
    from peftbench.core.registry import registry
    from peftbench.results import recommendation, tables

    ids, problems = set(shown), list[str]()
    results = store.results(problems.append, ids)
    failed = [r.record for r in results if r.record.status == "failed"]
    done = sum(r.record.status == "done" and not r.damage for r in results)
    show(result_table(results))
    for line in tables.caption(results):
        say(line)
    for record in failed:
        say(f"FAILED {record.label} on {record.data.name}: {record.reason}")
    for problem in problems:
        say(f"DAMAGED {problem}")
    figures = registry("reports").get("figure").write_main(results, store.root) if done else []
    for file in figures:
        say(f"Figure: {file}")
    say(f"{done} of {len(ids)} jobs done in {seconds:.0f} s; results in {store.root}.")
    for sentence in recommendation.sentences(results, store.root):
        say(sentence)
    if missing := [name for name in ids if not store.job(name).record_file.exists()]:
        warn(f"{len(missing)} jobs have no record: {', '.join(sorted(missing))}. Run the same command again.")
    return 0 if done == len(ids) else 1


def time_account(costs: Sequence[Costs], workers: int, seconds: float) -> str:
    """Return where the time of all workers went in a run of some seconds; the rest is starting and waiting."""
    spent = {
        "selecting weights": sum(one.selection_seconds for one in costs),
        "training": sum(one.train_seconds for one in costs),
        "evaluation": sum(one.evaluation_seconds for one in costs),
    }
    jobs = sum(one.seconds for one in costs)
    spent["other parts of jobs"] = max(0.0, jobs - sum(spent.values()))
    spent["starting and waiting"] = max(0.0, workers * seconds - jobs)
    whose = f"{workers} workers" if workers > 1 else "1 worker"
    return f"Time of {whose}: {', '.join(f'{what} {value:.0f} s' for what, value in spent.items())}."


def result_table(results: Sequence[Result]) -> Table:
    """Return the table at the end of a run, in 120 columns: rows for each data set, then the averages."""
    from peftbench.results.tables import main_tables

    screen = bare_table(ruled=True)
    screen.add_column("method", min_width=24)
    for column in COLUMNS:
        screen.add_column(column, justify="right", no_wrap=True)
    found = main_tables(results)
    several = len({table.setting for table in found}) > 1
    for table in found:
        screen.add_row(styled(f"{table.subject} · {table.setting}" if several else table.subject, "italic"))
        for cells in _rows(table):
            screen.add_row(*cells)
        screen.add_section()
    return screen


def _rows(table: ResultTable) -> list[list[Text]]:
    """Return the cells of COLUMNS after the method; a column that the table lacks stays empty."""
    from peftbench.results.formatting import NONE, Cell

    rows = []
    for row in table.rows:
        cells = dict(zip(table.columns, row, strict=True))
        budget = "" if cells["target"].text == NONE else f" @ {cells['target']}"
        shown = [_shown(cells.get(column, Cell(""))) for column in COLUMNS]
        rows.append([styled(cells["method"].text + budget), *shown])
    return rows


def _shown(cell: Cell) -> Text:
    return styled(cell.text, MARKS[cell.mark], cell.aside)
