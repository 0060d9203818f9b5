"""The protocol of an executor: it takes jobs, reports progress while they run, and hands over each record.

An executor runs every job with `training.job.run`, which claims the job's folder in the store, resumes at its last
checkpoint and writes the record last. So executors share no state but the store, and several may run the same study.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from peftbench.core.record import Record
from peftbench.core.spec import Job, Places
from peftbench.training.loop import Progress


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

    def tick(self, tick: Tick) -> None:
        """Receive the progress of a job."""

    def ended(self, job: Job, record: Record) -> None:
        """Receive a job that is done or failed, with its record."""

    def warn(self, text: str) -> None:
        """Receive a sentence about a process that was lost."""


@runtime_checkable
class Executor(Protocol):
    """Runs jobs somewhere and waits for them."""

    def run(self, jobs: Sequence[Job], places: Places, monitor: Monitor) -> None:
        """Run every job until it has a record, and report it to `monitor`.

        Raises:
            KeyboardInterrupt: the user or the system asked to stop; running jobs were stopped after a checkpoint.
        """


def ticker(job: Job, send: Callable[[Tick], None]) -> Callable[[Progress], None]:
    """Return a callback for the training loop that sends a Tick for each progress report."""

    def watch(progress: Progress) -> None:
        seconds = progress.train_seconds
        rate = progress.step * job.recipe.batch / seconds if seconds else 0.0
        best = progress.chosen["validation"].score if "validation" in progress.chosen else None
        send(Tick(job.id, progress.step, rate, best))

    return watch
