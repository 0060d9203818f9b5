"""Being asked to stop: the first time behind a checkpoint, the second time at once; and ending when the parent does.

Imports nothing heavy: helpers that start as processes of their own begin here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    """Whether a signal has asked this process to stop."""

    asked: bool = False

    def __call__(self) -> bool:
        """It has."""
        return self.asked


@contextmanager
def asked_by(*numbers: signal.Signals, say: Callable[[], None] = lambda: None) -> Iterator[Stop]:
    """Hear these signals within: the first only asks (and `say`s so), the next raises KeyboardInterrupt.

    Python hears signals in the main thread alone; elsewhere nothing is asked and all stays as it was.
    """
    stop = Stop()

    def hear(_number: int, _frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        say()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent(end: Callable[[], None]) -> None:
    """Do `end` in this process when its parent is gone, however that went."""
    parent = multiprocessing.parent_process()

    def outlive() -> None:
        if parent is not None:
            parent.join()
            end()

    threading.Thread(target=outlive, daemon=True).start()


def keep_to_the_end() -> None:
    """What a helper does first: be deaf to what ends a whole group, as others may need it; outlive nobody."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent(lambda: os._exit(1))
