"""Running jobs side by side: one process each, and what they report on the way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from queue import Empty
from typing import Any, NoReturn

import torch

from peftbench.core.record import Record
from peftbench.core.spec import Job, Places
from peftbench.execution.signals import Stop, asked_by, end_with_parent, keep_to_the_end
from peftbench.profiling import hardware
from peftbench.results.store import Store
from peftbench.training.job import give_up, run
from peftbench.training.loop import Outside, Progress

DIED = "The process of this job died twice, perhaps for want of memory; a smaller --batch or fewer --jobs may do."
POLL = 0.2  # seconds between two looks at what the workers report
_stop = Stop()  # of a worker: whether it was asked to stop behind a checkpoint


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

    A worker that dies takes only its job with it. The first Ctrl-C, or SIGTERM, stops all behind a checkpoint, the
    second at once: both raise KeyboardInterrupt. Workers whose parent is gone stop behind a checkpoint, too.
    """
    waiting = list(jobs)
    with asked_by(signal.SIGINT, signal.SIGTERM, say=_say_so) as stop:
        while waiting:
            held = []
            alone = min(workers, len(waiting)) == 1
            ended = (
                _one_by_one(waiting, places, show, stop)
                if alone
                else _side_by_side(waiting, places, workers, show, stop)
            )
            for job, record in ended:
                if record is None:
                    held.append(job)
                else:
                    done(job, record)
            if len(held) == len(waiting):
                time.sleep(1)  # others are at work on all that is left
            waiting = held


def _say_so() -> None:
    sys.stderr.write("\npeftbench: stopping at the next step; Ctrl-C again stops at once.\n")


def _one_by_one(jobs: Sequence[Job], places: Places, show: Show, stop: Stop) -> Iterator[tuple[Job, Record | None]]:
    for job in jobs:
        if stop():
            raise KeyboardInterrupt
        yield job, run(job, places, Outside(ticker(job, show), stop=stop))


def _side_by_side(
    jobs: Sequence[Job], places: Places, workers: int, show: Show, stop: Stop
) -> Iterator[tuple[Job, Record | None]]:
    left = {job.id: job for job in jobs}
    while left:
        try:
            for job, record in _pooled(list(left.values()), places, workers, show, stop):
                del left[job.id]
                yield job, record
        except BrokenProcessPool:
            if stop():
                raise KeyboardInterrupt from None
            begun = [job for job in left.values() if Store(places.store).job(job.id).state() == "interrupted"]
            for job in begun or list(left.values()):  # one of these killed its process: each once more, by itself
                del left[job.id]
                yield job, _by_itself(job, places, show, stop)


def _by_itself(job: Job, places: Places, show: Show, stop: Stop) -> Record | None:
    try:
        return next(record for _, record in _pooled([job], places, 1, show, stop))
    except BrokenProcessPool:
        return give_up(job, places, DIED)


def _pooled(
    jobs: Sequence[Job], places: Places, workers: int, show: Show, stop: Stop
) -> Iterator[tuple[Job, Record | None]]:
    """Jobs in a pool of processes, as they end. Raises BrokenProcessPool when one of these dies."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        with _deaf():
            keeper = SyncManager(ctx=context)
            keeper.start(keep_to_the_end)
            ticks = stack.enter_context(keeper).Queue()
            others = set(multiprocessing.active_children())  # the queue's keeper among them, which stays to the end
            count = min(workers, len(jobs))
            seats = _seats(context, count, hardware.cards() if places.device == "cuda" else 0)
            pool = stack.enter_context(ProcessPoolExecutor(count, context, _begin, (seats,)))
            pending: dict[Future[Record | None], Job] = {pool.submit(_work, job, places, ticks): job for job in jobs}
        ours = set(multiprocessing.active_children()) - others
        try:
            while pending:
                finished, _ = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                _drain(ticks, show)
                for future in finished:
                    yield pending.pop(future), future.result()
                if stop():
                    _pass_on(pending, ours)
        except BrokenProcessPool:
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in ours:
                process.kill()
            for process in ours:
                process.join()
            raise


def _seats(context: SpawnContext, workers: int, cards: int) -> SimpleQueue[int]:
    """The card of each worker, in turn; none without cards."""
    seats: SimpleQueue[int] = context.SimpleQueue()
    for number in range(workers if cards else 0):
        seats.put(number % cards)
    return seats


def _begin(seats: SimpleQueue[int]) -> None:
    """The first thing that a worker does: take a card, if there are any, which `cuda` then means in this process."""
    signal.signal(signal.SIGUSR1, _hear)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    end_with_parent(_ask_to_stop)
    if not seats.empty():
        torch.cuda.set_device(seats.get())


def _hear(_number: int, _frame: object) -> None:
    _stop.asked = True


def _ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)  # a job that is running stops behind its checkpoint


def _is_orphan() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _pass_on(pending: Mapping[Future[Record | None], Job], ours: Collection[BaseProcess]) -> NoReturn:
    """Ask the workers to stop, wait until they have. Raises KeyboardInterrupt, or BrokenProcessPool if one has died.

    They are not asked by SIGTERM, of which one without a job would die, and the pool with it.
    """
    for future in pending:
        future.cancel()
    for process in ours:
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)
    asked = [future for future in pending if not future.cancelled()]
    wait(asked)
    errors = (future.exception() for future in asked)
    raise next((error for error in errors if isinstance(error, BrokenProcessPool)), KeyboardInterrupt)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start in here do not hear Ctrl-C, which goes to all of a terminal's; their parent ends them.

    Nor, before they know what to do, that they are to stop.
    """
    resource_tracker.ensure_running()  # else it starts with the first process and lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(job: Job, places: Places, ticks: Any) -> Record | None:  # noqa: ANN401 - a proxy of a queue
    ended = Stop()

    def hear(number: int, frame: object) -> None:  # however often: a pool that breaks sends it, too
        ended.asked = True
        _hear(number, frame)

    before = signal.signal(signal.SIGTERM, hear)
    try:
        if _stop():
            raise KeyboardInterrupt
        return run(job, places, Outside(ticker(job, _sender(ticks)), stop=_stop))
    finally:
        signal.signal(signal.SIGTERM, before)
        if ended() or _is_orphan():  # nobody will fetch what was made, nor bring another job
            os._exit(1)


def _sender(ticks: Any) -> Show:  # noqa: ANN401
    """Puts ticks into a queue; whose parent is gone, so that nobody hears them, stops like one that was asked to."""

    def send(tick: Tick) -> None:
        try:
            ticks.put(tick)
        except (OSError, EOFError):
            raise KeyboardInterrupt from None

    return send


def _drain(ticks: Any, show: Show) -> None:  # noqa: ANN401
    while True:
        try:
            show(ticks.get_nowait())
        except Empty:
            return
