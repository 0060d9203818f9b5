"""How far something long is: bars in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

QUIET = 10.0  # seconds between two plain lines


class Bars:
    """Told `what` is at `done` of `total`; the numbers are images, or bytes where `in_bytes`."""

    def __init__(self, console: Console, *, in_bytes: bool = False) -> None:
        columns = (_text("description"), BarColumn(), _text("fields[note]"))
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._console, self._in_bytes = console, in_bytes
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Go on; a total of 0 is unknown."""
        note = self._show(done, total)
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total or None, note=note)
        self._bars.update(self._tasks[what], completed=done, note=note)
        if not self._console.is_terminal:
            self._say(what, note, over=done >= total > 0)

    def _say(self, what: str, note: str, *, over: bool) -> None:
        first = self._said.setdefault(what, time.monotonic())
        if over or time.monotonic() - first >= QUIET:
            self._said[what] = time.monotonic()
            self._console.print(f"{what}: {note}", markup=False, soft_wrap=True)

    def _show(self, done: int, total: int) -> str:
        known = (done, total) if total else (done,)
        if self._in_bytes:
            return f"{' of '.join(f'{number / 1e6:,.1f}' for number in known)} MB"
        return f"{' of '.join(f'{number:,}' for number in known)} images"


def counters(console: Console) -> Progress:
    """Bars that count things done, with the time they took, the time left and a note; silent but in a terminal."""
    columns = (_text("description"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, _text("fields[note]"), console=console, disable=not console.is_terminal)


def _text(what: str) -> TextColumn:
    """As it is: the brackets of `lora[r=4]` are no markup."""
    return TextColumn(f"{{task.{what}}}", markup=False)


class Tally:
    """One thing after another: a bar with the name of the present one in a terminal, a line as each ends elsewhere."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._bars = counters(console)
        self._console, self._total, self._ended = console, total, 0
        self._all = self._bars.add_task(what, total=total, note="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, name: str) -> None:
        """It is this one's turn."""
        self._bars.update(self._all, note=name)

    def end(self, name: str, says: str, *, aloud: bool) -> None:
        """It is done; in a terminal its line stays only if `aloud`."""
        self._ended += 1
        self._bars.update(self._all, completed=self._ended, note="")
        if aloud or not self._console.is_terminal:
            self._console.print(f"[{self._ended}/{self._total}] {name}: {says}", markup=False, soft_wrap=True)
