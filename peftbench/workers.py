"""Running jobs side by side: one process each, and what they report on the way."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from queue import Empty
from typing import Any

from peftbench.engine import Progress
from peftbench.errors import JobError
from peftbench.record import Record
from peftbench.run import run
from peftbench.spec import Job, Places

POLL = 0.2  # seconds between two looks at what the workers report


@dataclass(frozen=True)
class Tick:
    """How far one job is."""

    job_id: str
    step: int
    rate: float  # images a second in training
    best: float | None  # validation macro F1


Show = Callable[[Tick], None]
Done = Callable[[Job, Record], None]


def ticker(job: Job, send: Show) -> Callable[[Progress], None]:
    """A watch for the engine that sends ticks."""

    def watch(progress: Progress) -> None:
        seconds = progress.train_seconds
        best = progress.chosen["validation"].score if "validation" in progress.chosen else None
        send(Tick(job.id, progress.step, progress.step * job.recipe.batch / seconds if seconds else 0.0, best))

    return watch


def run_all(jobs: Sequence[Job], places: Places, workers: int, show: Show, done: Done) -> None:
    """Run jobs, `workers` at a time; jobs that another process holds are waited for.

    Raises JobError when a worker dies.
    """
    waiting = list(jobs)
    while waiting:
        held = []
        alone = min(workers, len(waiting)) == 1
        for job, record in (
            _one_by_one(waiting, places, show) if alone else _side_by_side(waiting, places, workers, show)
        ):
            if record is None:
                held.append(job)
            else:
                done(job, record)
        if len(held) == len(waiting):
            time.sleep(1)  # others are at work on all that is left
        waiting = held


def _one_by_one(jobs: Sequence[Job], places: Places, show: Show) -> Iterator[tuple[Job, Record | None]]:
    for job in jobs:
        yield job, run(job, places, ticker(job, show))


def _side_by_side(jobs: Sequence[Job], places: Places, workers: int, show: Show) -> Iterator[tuple[Job, Record | None]]:
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ExitStack() as stack:
        with _deaf():
            ticks = stack.enter_context(context.Manager()).Queue()
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, len(jobs)), context))
            pending: dict[Future[Record | None], Job] = {pool.submit(_work, job, places, ticks): job for job in jobs}
        ours = set(multiprocessing.active_children()) - others
        try:
            while pending:
                finished, _ = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                _drain(ticks, show)
                for future in finished:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool:
            message = (
                "A worker process died, perhaps for want of memory; run the same command again, with fewer --jobs."
            )
            raise JobError(message) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in ours:
                process.terminate()
            for process in ours:
                process.join()
            raise


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start in here do not hear Ctrl-C, which goes to all of a terminal's; their parent ends them."""
    resource_tracker.ensure_running()  # else it starts with the first process and lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(job: Job, places: Places, ticks: Any) -> Record | None:  # noqa: ANN401 - a proxy of a queue
    return run(job, places, ticker(job, ticks.put))


def _drain(ticks: Any, show: Show) -> None:  # noqa: ANN401
    while True:
        try:
            show(ticks.get_nowait())
        except Empty:
            return
