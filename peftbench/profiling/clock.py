"""Wall and CPU time side by side; on a busy machine only CPU time measures what a method costs."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Elapsed:
    """Seconds on the wall clock, and of CPU time over all threads of this process."""

    wall: float
    cpu: float


class Clock:
    """Measures from its creation, and from each lap to the next."""

    def __init__(self) -> None:
        self._start = self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def lap(self) -> Elapsed:
        """Return the time since the last lap."""
        before, self._last = self._last, self._now()
        return Elapsed(self._last[0] - before[0], self._last[1] - before[1])

    def total(self) -> Elapsed:
        """Return the time since the clock was made."""
        now = self._now()
        return Elapsed(now[0] - self._start[0], now[1] - self._start[1])
