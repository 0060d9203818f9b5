"""The contract of an executor: it runs the jobs of a study somewhere, reports progress and hands over each record.

An executor runs every job with `training.job.run`, which claims the job's folder in the store, resumes at its last
checkpoint and writes the record last. So executors share no state but the store, and several may run the same study.

An executor is a dataclass whose fields are its options: the keys of the table [executor] in a study, or the options of
`peftbench run` of the same name. A field `options` receives all keys that are no field. Executors of other packages are
entry points of the group `peftbench.executors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Protocol, TypeAlias, runtime_checkable

from pydantic import Field

from peftbench.core.fields import build
from peftbench.core.record import Record
from peftbench.core.registry import registry
from peftbench.core.spec import Job, Places
from peftbench.results import owner
from peftbench.results.store import Store
from peftbench.study.resolve import Resolved, write_study
from peftbench.study.tuning import rounds
from peftbench.training.loop import Progress

LOCAL = "local"
LATE = "The job exceeded --timeout {timeout:g}."
Parallel: TypeAlias = Annotated[int, Field(ge=0)]  # jobs or bundles of jobs at the same time
Timeout: TypeAlias = Annotated[float, Field(ge=1)]  # seconds


@dataclass(frozen=True)
class Tick:
    """The progress of one job."""

    job_id: str
    step: int
    rate: float  # images per second in training
    best: float | None  # validation macro F1, 0..1


@runtime_checkable
class Monitor(Protocol):
    """What receives the events of a run; it is called in the process that runs the executor."""

    def begin(self, what: str, jobs: Sequence[Job]) -> None:
        """Receive the jobs that run next, such as `jobs` or `trials of round 2`."""

    def tick(self, tick: Tick) -> None:
        """Receive the progress of a job that has begun."""

    def ended(self, job: Job, record: Record) -> None:
        """Receive a job that is done or failed, with its record."""

    def note(self, text: str) -> None:
        """Receive a sentence on what is done already, or where the jobs run."""

    def warn(self, text: str) -> None:
        """Receive a sentence on what was lost."""


@runtime_checkable
class Executor(Protocol):
    """Runs the jobs of a study somewhere and waits for them."""

    @property
    def elsewhere(self) -> bool:
        """Whether jobs run on other machines."""
        ...

    @property
    def wants_gpu(self) -> bool:
        """Whether GPUs of other machines are asked for, so that `--device auto` means them."""
        ...

    def run_study(self, resolved: Resolved, places: Places, monitor: Monitor) -> None:
        """Run every trial and every final job until it has a record, report it to `monitor`, and write study.json.

        Jobs that are done before are left as they are. `run_in_rounds` does all but running a list of jobs.

        Raises:
            KeyboardInterrupt: the user or the system asked to stop; running jobs were stopped after a checkpoint, or
                go on without this process.
        """


RunJobs: TypeAlias = Callable[[Sequence[Job], Places, Monitor], None]  # runs each job until it has a record


def make_executor(name: str, table: Mapping[str, Any], given: Mapping[str, Any]) -> Executor:
    """Return the executor called `name`, or that of the table [executor], or the local one.

    Args:
        name: as given on the command line; "" leaves the choice to the table.
        table: the keys of [executor] in the study, `name` among them; ignored if it is about another executor.
        given: options of the command line, which win; those that are None are not given.

    Raises UnknownNameError, or RequestError for an option that the executor does not have.
    """
    chosen = name or str(table.get("name", LOCAL))
    values = dict(table) if table.get("name", chosen) == chosen else {}
    values.pop("name", None)
    kind = registry("executors").get(chosen)
    known = {field.name for field in fields(kind)}
    options = {key: value for key, value in values.items() if key not in known} if "options" in known else {}
    values = {key: value for key, value in values.items() if key not in options}
    values |= {key: value for key, value in given.items() if value is not None}
    if options:
        values["options"] = options | values.get("options", {})
    executor: Executor = build(kind, values, f"executor {chosen}")
    return executor


def run_in_rounds(run: RunJobs, resolved: Resolved, places: Places, monitor: Monitor) -> None:
    """Run a study in rounds: trials as long as there are any, then the final jobs. Each round waits for the last."""
    store = Store(places.store)
    for number, trials in enumerate(rounds(resolved.drafts, store), 1):
        _run_unfinished(run, f"trials of round {number}", trials, places, monitor)
    if any(not draft.is_tuned(store) for draft in resolved.drafts):
        return  # trials were lost; the executor has reported it
    finals = [draft.final(store) for draft in resolved.drafts]
    write_study(resolved, finals, store)
    _run_unfinished(run, "jobs", finals, places, monitor)


def _run_unfinished(run: RunJobs, what: str, jobs: Sequence[Job], places: Places, monitor: Monitor) -> None:
    """Run the jobs that are not done."""
    store = Store(places.store)
    states = {job.id: store.job(job.id).state() for job in jobs}
    for name in (name for name, state in states.items() if state == "damaged"):
        monitor.note(f"DAMAGED {name}: {store.job(name).damage()}")
    if done := [name for name, state in states.items() if state == "done"]:
        monitor.note(f"{len(done)} of {len(jobs)} {what} were done before.")
        for name in done:  # a process that was killed after the record had no time to remove this
            owner.remove(store.job(name).path)
    if pending := [job for job in jobs if states[job.id] not in {"done", "damaged"}]:
        monitor.begin(what, pending)
        run(pending, places, monitor)


def ticker(job: Job, send: Callable[[Tick], None]) -> Callable[[Progress], None]:
    """Return a callback for the training loop that sends a Tick for each progress report."""

    def watch(progress: Progress) -> None:
        send(Tick(job.id, progress.step, progress.rate(job.recipe.batch), progress.best))

    return watch
