"""Signals and the end of processes.

The first request to stop takes effect after a checkpoint, the second at once; a child ends when its parent is gone.
Imports nothing heavy: helper processes start here.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import select
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import cast

STDERR = 2  # the number of its file
GRACE = 10.0  # seconds that a job has to end by itself


@dataclass
class Stop:
    """Whether this process was asked to stop."""

    requested: bool = False

    def __call__(self) -> bool:
        """Return whether it was."""
        return self.requested


@contextmanager
def stop_on(*numbers: signal.Signals, notify: Callable[[], None] = lambda: None) -> Iterator[Stop]:
    """Turn these signals into a request to stop: the first sets it and calls `notify`, the next interrupts.

    Python receives signals in the main thread only; in another thread nothing changes.
    """
    stop = Stop()

    def handle(_number: int, _frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        notify()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Start processes in here with these signals blocked.

    A terminal sends Ctrl-C to all its processes; workers ignore it and are stopped by their parent instead.
    """
    resource_tracker.ensure_running()  # else it starts with the first process and unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class ResourceTracker:
    """The helper process of multiprocessing that removes the semaphores which a killed process leaves."""

    pipe: int = field(default_factory=lambda: cast("int", resource_tracker.getfd()))  # this process writes into it

    def relaunch_if_lost(self) -> bool:
        """Launch the helper again if it has ended; return whether it had."""
        poll = select.poll()
        poll.register(self.pipe, 0)
        if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            return False
        with warnings.catch_warnings(), _stderr_closed():
            warnings.simplefilter("ignore")
            self.pipe = cast("int", resource_tracker.getfd())
        return True


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Start a process in here that cannot write to stderr.

    A helper that is launched again would write a traceback for each semaphore that it did not see being made.
    """
    own, null = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDERR)
    try:
        yield
    finally:
        os.dup2(own, STDERR)
        os.close(own)
        os.close(null)


@contextmanager
def time_limit(seconds: float | None, error: Exception | None) -> Iterator[None]:
    """Raise `error` in this block after `seconds`; end the process GRACE seconds later if it has not left the block.

    The second limit is for code that catches the error, or that never returns to Python. None: no limit.
    """
    if seconds is None or error is None:
        yield
        return

    def handle(_number: int, _frame: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call_when_orphaned(end: Callable[[], None]) -> None:
    """Call `end` in this process when its parent process has ended, for whatever reason."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            end()

    threading.Thread(target=wait, daemon=True).start()


def is_orphan() -> bool:
    """Return whether the parent process of this one has ended."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def ignore_sigterm() -> None:
    """Ignore SIGTERM, which schedulers send to a whole group, and exit when the parent process has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    call_when_orphaned(lambda: os._exit(1))
