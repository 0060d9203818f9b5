"""`peftbench run`: run the jobs of a study that are not done, then print its table."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import typer

from peftbench.cli.console import bare_table, output, say, show, styled, warn
from peftbench.cli.options import (
    ExecutorOptions,
    PlaceOptions,
    ScaleOption,
    SkipBrokenOption,
    StudyArgument,
    StudyOptions,
    grouped,
)
from peftbench.cli.weights import fetch_missing
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
    from peftbench.study.tuning import Draft

COLUMNS = ("macro F1", "ACC", "AUC", "trained", "with head", "seconds", "memory")  # of the table at the end
SUMMARIZED = 1000  # jobs; above it tables and comparisons are left to the commands that write them
MARKS: Mapping[str, str] = MappingProxyType({"": "", "best": "bold"})


@grouped
def run(
    options: StudyOptions,
    places: PlaceOptions,
    where: ExecutorOptions,
    study: StudyArgument = "",
    scale: ScaleOption = "",
    skip_broken: SkipBrokenOption = False,
) -> None:
    """Train every method on every data set. Without arguments, the quick study."""
    from peftbench.core.spec import executor_table, find_study, read_study

    file = find_study(study) if study else None
    found = read_study(file, asdict(options), scale)  # before torch is imported: a typing error is answered at once
    table = executor_table(file)
    where.check(table)
    from peftbench.execution.executor import make_executor

    executor = make_executor(where.executor, table, where.given())
    found_places = places.found(elsewhere=executor.elsewhere, wants_gpu=executor.wants_gpu)
    code = run_study(found, found_places, executor, skip_broken=skip_broken, trackers=where.trackers)
    raise typer.Exit(code)


def run_study(
    study: Study, places: Places, executor: Executor, *, skip_broken: bool, trackers: Sequence[str] = ()
) -> int:
    """Run what is not done and print a table; return 0 when every job is done, 1 when some failed or have no record."""
    from peftbench.cli.progress import Bars
    from peftbench.execution.local import LocalExecutor
    from peftbench.execution.tracking import Tracking, make_trackers
    from peftbench.results.store import Store
    from peftbench.study.resolve import resolve

    fetch_missing(study.backbone, places.weights)
    started = time.perf_counter()
    following = make_trackers(trackers, places.store)  # before the first job: an extra may be missing
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
    with Board() as board, Tracking(board, following, places.store) as monitor:
        executor.run_study(resolved, places, monitor)
    if getattr(executor, "dry_run", False):
        return 0
    seconds = time.perf_counter() - started
    found = _finish(resolved.drafts, store, seconds)
    if isinstance(executor, LocalExecutor) and (costs := [record.costs for record in board.records if record.costs]):
        say(time_account(costs, min(executor.workers(places.device), len(board.records)), seconds))
    say(f"Next: peftbench report {shlex.quote(str(store.root))}")
    return found


def _finish(drafts: Sequence[Draft], store: Store, seconds: float) -> int:
    """Pool the folds and print the table; return the exit code, 1 if final jobs are unknown for want of trials."""
    from peftbench.study.folds import pool_all

    tuned = [draft for draft in drafts if draft.is_tuned(store)]
    code = _conclude(pool_all([draft.final(store) for draft in tuned], store), store, seconds)
    if open_ := len(drafts) - len(tuned):
        warn(f"{open_} jobs wait for trials that have not ended. Run the same command again.")
    return 1 if open_ else code


class Board:
    """The progress of jobs: bars in a terminal, a line as each job ends elsewhere."""

    def __init__(self) -> None:
        from peftbench.cli.progress import counters

        self._bars = counters(output())
        self._jobs: dict[str, Job] = {}
        self._total: TaskID | None = None
        self._count = 0  # of the jobs that began together and have ended
        self._running: dict[str, TaskID] = {}
        self.records: list[Record] = []  # of the jobs that ended

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, what: str, jobs: Sequence[Job]) -> None:
        """Show a bar for these jobs in place of the last ones."""
        for task in (*self._running.values(), *([] if self._total is None else [self._total])):
            self._bars.remove_task(task)
        self._jobs, self._running, self._count = {job.id: job for job in jobs}, {}, 0
        self._total = self._bars.add_task(what, total=len(jobs), note="")

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
        self._count += 1
        if job.id in self._running:
            self._bars.remove_task(self._running.pop(job.id))
        if self._total is not None:
            self._bars.update(self._total, completed=self._count)
        if not output().is_terminal or record.status == "failed":
            say(f"[{self._count}/{len(self._jobs)}] {_name(job)}: {_outcome(record)}")

    def note(self, text: str) -> None:
        """Print a sentence on what is done already, or where the jobs run."""
        say(text)

    def warn(self, text: str) -> None:
        """Print a sentence on what was lost, on stderr."""
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


def _conclude(jobs: Sequence[str], store: Store, seconds: float) -> int:
    from peftbench.core.registry import registry
    from peftbench.results import recommendation, tables
    from peftbench.results.redaction import publish

    ids, problems = set(jobs), list[str]()
    results = store.results(problems.append, ids)
    failed = [r.record for r in results if r.record.status == "failed"]
    done = sum(r.record.status == "done" and not r.damage for r in results)
    shown = len(results) <= SUMMARIZED
    if shown:
        show(result_table(results))
        for line in tables.caption(results):
            say(line)
    for record in failed:
        say(f"FAILED {record.label} on {record.data.name}: {record.reason}")
    for problem in problems:
        say(f"DAMAGED {problem}")
    figures = registry("reports").get("figure").write_main(publish(results), store.root) if done and shown else []
    for file in figures:
        say(f"Figure: {file}")
    say(f"{done} of {len(ids)} jobs done in {seconds:.0f} s; results in {store.root}.")
    for sentence in recommendation.sentences(results, store.root) if shown else ():
        say(sentence)
    if not shown:
        compare = f"peftbench recommend {shlex.quote(str(store.root))}"
        say(f"More than {SUMMARIZED:,} jobs, so no table is printed here; `{compare}` compares them.")
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
