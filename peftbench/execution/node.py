"""One task of a cluster: `python -m peftbench.execution.node JOBS.json PHASE REQUEUES NUMBER`.

On SIGTERM, which Slurm sends before the time is up or another job takes the node, the running job stops after a
checkpoint and the task goes back into the queue, up to a number of times; it goes on where it stopped.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from peftbench.errors import JobError, PeftbenchError
from peftbench.execution import slurm_queue
from peftbench.results.owner import slurm_task

if TYPE_CHECKING:
    from peftbench.core.record import Record
    from peftbench.core.spec import Job
    from peftbench.execution.executor import Tick
    from peftbench.execution.job_list import JobList

STOPPED = 75  # exit code of a task that stopped and is not back in the queue


def main(words: Sequence[str]) -> int:
    """Run a task; return its exit code: 0 when every job that it owns has a record."""
    signal.signal(signal.SIGTERM, _interrupt)
    file, phase, requeues, number = words
    try:
        return run_task(Path(file), phase, int(number))
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return _requeue(Path(file), int(requeues))
    except (PeftbenchError, OSError) as error:
        _print(f"peftbench: {error}")
        return 1


def run_task(file: Path, phase: str, number: int) -> int:
    """Run what a task owns. Raises JobError, or KeyboardInterrupt on SIGTERM."""
    from peftbench.execution import job_list  # noqa: PLC0415 - imports torch, and SIGTERM may arrive meanwhile

    if slurm_queue.Submission(file.parent).is_cancelled:
        _print("peftbench: cancelled.")
        return 0
    listed = job_list.read(file)
    listed.run_task(phase, number, lambda jobs: _run(jobs, listed))
    return 0


def _run(jobs: Sequence[Job], listed: JobList) -> None:
    from peftbench.execution.local import LocalExecutor  # noqa: PLC0415 - as above, torch
    from peftbench.profiling import hardware  # noqa: PLC0415 - torch, too

    if listed.places.device == "cuda" and not hardware.gpus():
        raise JobError("This study runs on GPUs, and this node has none for the task: ask for one, such as gres=gpu:1.")
    LocalExecutor(1, listed.timeout, isolated=True).run(jobs, listed.places, _Log())


def _requeue(file: Path, most: int) -> int:
    """Put this task back into the queue, at most so many times; return the exit code."""
    task, restarts = slurm_task(os.environ), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if not task or slurm_queue.Submission(file.parent).is_cancelled:
        _print("peftbench: stopped after a checkpoint.")
        return STOPPED
    if restarts >= most:
        _print(f"peftbench: stopped after a checkpoint, and not requeued: the task has run {restarts + 1} times.")
        return STOPPED
    if slurm_queue.requeue(task):
        _print("peftbench: stopped after a checkpoint; the task is back in the queue.")
        return 0
    _print("peftbench: stopped after a checkpoint; Slurm has ended the task.")
    return STOPPED


class _Log:
    """A monitor that prints a line for each job."""

    def begin(self, what: str, jobs: Sequence[Job]) -> None:
        pass

    def tick(self, tick: Tick) -> None:
        pass

    def ended(self, job: Job, record: Record) -> None:
        outcome = f"FAILED: {record.reason}" if record.status == "failed" else "done"
        _print(f"{job.id} {job.label} on {job.dataset}, seed {job.seed}: {outcome}")

    def note(self, text: str) -> None:
        _print(text)

    def warn(self, text: str) -> None:
        _print(f"peftbench: {text}")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
