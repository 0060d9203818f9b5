"""Jobs in processes of this machine, and what they report while they run."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from queue import Empty
from typing import Any, NoReturn, TypeAlias

import torch

from peftbench.core.record import Record
from peftbench.core.spec import Job, Places
from peftbench.errors import JobError
from peftbench.execution.executor import LATE, Monitor, Parallel, Tick, Timeout, run_in_rounds, ticker
from peftbench.execution.signals import (
    ResourceTracker,
    Stop,
    call_when_orphaned,
    ignore_sigterm,
    is_orphan,
    signals_blocked,
    stop_on,
    time_limit,
)
from peftbench.profiling import hardware
from peftbench.results.store import Store
from peftbench.study.resolve import Resolved
from peftbench.training.job import give_up, run
from peftbench.training.loop import RunCallbacks

DIED = "The worker process of this job died twice, perhaps out of memory; try a smaller --batch or fewer --jobs."
RETRIED = "A worker process ended unexpectedly while it ran {names}; each of these jobs runs once more by itself."
NO_PROGRESS = "The helper process that relays progress ended unexpectedly; jobs go on without progress reports."
NO_RESOURCE_TRACKER = "The helper process that removes semaphores ended unexpectedly; it was started again."
POLL = 0.2  # seconds between two reads of what the workers report
_queue: list[Any] = []  # of a worker: a proxy of the queue for ticks, which connects once, not for every job
_stop = Stop()  # of a worker: whether it was asked to stop after a checkpoint

Ended: TypeAlias = Iterator[tuple[Job, Record | None]]  # jobs as they end; None: another process holds the job


@dataclass(frozen=True)
class LocalExecutor:
    """Runs up to `parallel` jobs at the same time, each in a process of its own; a single one in this process.

    Jobs that another process holds are waited for. A worker that dies takes only its job with it. The first Ctrl-C or
    SIGTERM stops all jobs after a checkpoint, the second at once; workers whose parent is gone stop after a checkpoint.
    """

    parallel: Parallel = 0  # 0: one job per core on a CPU, one per GPU on GPUs
    timeout: Timeout | None = None  # seconds after which a job fails; None: never
    isolated: bool = False  # a single job runs in a process of its own, too: one that dies fails without the others

    @property
    def elsewhere(self) -> bool:
        """Whether jobs run on other machines."""
        return False

    @property
    def wants_gpu(self) -> bool:
        """Whether GPUs of other machines are asked for."""
        return False

    def workers(self, device: str) -> int:
        """Return the number of jobs at the same time on `cpu` or `cuda`."""
        return self.parallel or (hardware.gpus() if device == "cuda" else hardware.cores())

    def run_study(self, resolved: Resolved, places: Places, monitor: Monitor) -> None:
        """Run a study in rounds. Raises KeyboardInterrupt when asked to stop."""
        run_in_rounds(self.run, resolved, places, monitor)

    def run(self, jobs: Sequence[Job], places: Places, monitor: Monitor) -> None:
        """Run every job until it has a record. Raises KeyboardInterrupt when asked to stop."""
        waiting, workers = list(jobs), self.workers(places.device)
        with imports_kept(), stop_on(signal.SIGINT, signal.SIGTERM, notify=_print_stopping) as stop:
            while waiting:
                pool = _Pool(places, monitor, stop, min(workers, len(waiting)), self.timeout, self.isolated)
                held = []
                for job, record in pool.one_by_one(waiting) if pool.in_this_process else pool.side_by_side(waiting):
                    if record is None:
                        held.append(job)
                    else:
                        monitor.ended(job, record)
                if len(held) == len(waiting):
                    time.sleep(1)  # other processes hold all that is left
                waiting = held


@contextmanager
def imports_kept() -> Iterator[None]:
    """Leave what exists, the imported modules above all, out of garbage collection; each job collects twice."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


plugin = LocalExecutor


def _print_stopping() -> None:
    sys.stderr.write("\npeftbench: stopping at the next step; Ctrl-C again stops at once.\n")


@dataclass(frozen=True)
class _Pool:
    """The workers of one pass over the jobs."""

    places: Places
    monitor: Monitor
    stop: Stop
    workers: int
    timeout: float | None
    isolated: bool

    @property
    def in_this_process(self) -> bool:
        """Whether the jobs need no worker; only a worker can be ended when a job exceeds its time."""
        return self.workers == 1 and self.timeout is None and not self.isolated

    def one_by_one(self, jobs: Sequence[Job]) -> Ended:
        """Run jobs in this process."""
        for job in jobs:
            if self.stop():
                raise KeyboardInterrupt
            yield job, run(job, self.places, RunCallbacks(ticker(job, self.monitor.tick), stop=self.stop))

    def side_by_side(self, jobs: Sequence[Job]) -> Ended:
        """Run jobs in worker processes; when one dies, the jobs that had begun run once more, each by itself."""
        left = {job.id: job for job in jobs}
        while left:
            try:
                for job, record in self._in_workers(list(left.values()), self.workers):
                    del left[job.id]
                    yield job, record
            except BrokenProcessPool:
                if self.stop():
                    raise KeyboardInterrupt from None
                store = Store(self.places.store)
                begun = [job for job in left.values() if store.job(job.id).state() == "interrupted"]
                suspects = begun or list(left.values())  # one of these ended its process
                self.monitor.warn(RETRIED.format(names=", ".join(f"{job.label} on {job.dataset}" for job in suspects)))
                for job in suspects:
                    del left[job.id]
                    yield job, self._alone(job)

    def _ended(self, job: Job, future: Future[Record | None]) -> tuple[Job, Record | None]:
        """Return a job with the record that its worker returned, or with that of its failure outside of training."""
        try:
            return job, future.result()
        except JobError as error:
            return job, give_up(job, self.places, str(error))

    def _alone(self, job: Job) -> Record | None:
        """Run a job in a worker of its own; if that dies, too, the job has failed."""
        started = time.monotonic()
        try:
            return next(record for _, record in self._in_workers([job], 1))
        except BrokenProcessPool:
            is_late = self.timeout is not None and time.monotonic() - started > self.timeout
            return give_up(job, self.places, str(_late(self.timeout)) if is_late else DIED)

    def _in_workers(self, jobs: Sequence[Job], workers: int) -> Ended:
        """Yield jobs as they end. Raises BrokenProcessPool when a worker dies."""
        context = multiprocessing.get_context("spawn")
        count = min(workers, len(jobs))
        with ExitStack() as stack:
            with signals_blocked(signal.SIGINT, signal.SIGUSR1):
                tracker, ticks = ResourceTracker(), _Ticks(_relay(context, stack), self.monitor)
                others = set(multiprocessing.active_children())  # the manager among them
                gpus = gpu_queue(context, count, hardware.gpus() if self.places.device == "cuda" else 0)
                pool = stack.enter_context(ProcessPoolExecutor(count, context, start_worker, (gpus, ticks.queue)))
                pending = {pool.submit(_work, job, self.places, self.timeout): job for job in jobs}
            started = set(multiprocessing.active_children()) - others
            try:
                while pending:
                    finished, _ = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                    ticks.forward()
                    if tracker.relaunch_if_lost():
                        self.monitor.warn(NO_RESOURCE_TRACKER)
                    for future in finished:
                        yield self._ended(pending.pop(future), future)
                    if self.stop():
                        _stop_workers(pool, pending, started)
            except BrokenProcessPool:
                raise
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _kill(started)
                raise


def _relay(context: BaseContext, stack: ExitStack) -> Any:  # noqa: ANN401 - a proxy
    """Return a queue in a helper process that ends with the stack. Raises JobError if the process dies at once."""
    manager = SyncManager(ctx=context)
    try:
        manager.start(ignore_sigterm)
        return stack.enter_context(manager).Queue()
    except (EOFError, OSError) as error:
        problem = f"The helper process that relays progress ended while it started ({type(error).__name__})"
        raise JobError(f"{problem}, perhaps out of memory. Run the same command again.") from None


def _late(timeout: float | None) -> JobError:
    return JobError(LATE.format(timeout=timeout))


def gpu_queue(context: BaseContext, workers: int, gpus: int) -> SimpleQueue[int]:
    """Return a queue with the number of a GPU for each worker, in turn; empty without GPUs."""
    numbers: SimpleQueue[int] = context.SimpleQueue()
    for worker in range(workers if gpus else 0):
        numbers.put(worker % gpus)
    return numbers


def _stop_workers(
    pool: ProcessPoolExecutor, pending: Collection[Future[Record | None]], workers: Collection[BaseProcess]
) -> NoReturn:
    """Ask the workers to stop after a checkpoint and wait until they have.

    They are asked by SIGUSR1: SIGTERM would end a worker that has no job, and break the pool. The pool itself cancels
    the jobs that have not begun: if a worker dies, its thread fails on a future that was cancelled from here.

    Raises KeyboardInterrupt, or BrokenProcessPool if a worker has died.
    """
    for process in workers:
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)
    pool.shutdown(wait=False, cancel_futures=True)
    while not all(future.done() for future in pending):  # `wait` does not return for what the pool cancels
        time.sleep(POLL)
    errors = (future.exception() for future in pending if not future.cancelled())
    raise next((error for error in errors if isinstance(error, BrokenProcessPool)), KeyboardInterrupt)


def _kill(workers: Collection[BaseProcess]) -> None:
    for process in workers:
        process.kill()
    for process in workers:
        process.join()


@dataclass
class _Ticks:
    """The queue of a helper process, through which workers report progress."""

    queue: Any  # a proxy
    monitor: Monitor
    lost: bool = False  # whether the helper process has ended

    def forward(self) -> None:
        """Hand every tick that has arrived to the monitor; without the helper, warn once and do nothing."""
        while not self.lost:
            try:
                tick = self.queue.get_nowait()
            except Empty:
                return
            except (OSError, EOFError):
                self.lost = True
                self.monitor.warn(NO_PROGRESS)
            else:
                self.monitor.tick(tick)


# --- in a worker -----------------------------------------------------------------------------------------------------


def start_worker(gpus: SimpleQueue[int], ticks: Any) -> None:  # noqa: ANN401 - a proxy
    """Prepare a worker process: keep the queue for ticks, listen for the request to stop, and take a GPU for `cuda`."""
    _queue[:] = [ticks]
    signal.signal(signal.SIGUSR1, _request_stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    call_when_orphaned(_terminate_self)
    gc.freeze()
    atexit.register(gc.unfreeze)
    if not gpus.empty():
        torch.cuda.set_device(gpus.get())


def _request_stop(_number: int, _frame: object) -> None:
    _stop.requested = True


def _terminate_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)  # a running job stops after its checkpoint


def _work(job: Job, places: Places, timeout: float | None) -> Record | None:
    terminated = Stop()

    def handle(number: int, frame: object) -> None:  # any number of times: a pool that breaks sends it, too
        terminated.requested = True
        _request_stop(number, frame)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        if _stop():
            raise KeyboardInterrupt
        with time_limit(timeout, _late(timeout) if timeout else None):
            return run(job, places, RunCallbacks(ticker(job, _send), stop=_stop))
    finally:
        signal.signal(signal.SIGTERM, before)
        if terminated() or is_orphan():  # no process will take the result or send another job
            os._exit(1)


def _send(tick: Tick) -> None:
    """Put a tick into the queue; when the queue is lost with the parent, the job stops after a checkpoint."""
    try:
        for queue in _queue:
            queue.put(tick)
    except (OSError, EOFError):
        if is_orphan():
            raise KeyboardInterrupt from None
