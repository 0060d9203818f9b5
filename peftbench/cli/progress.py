"""Progress of long work: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from peftbench.cli.console import make_progress, say
from peftbench.results.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

INTERVAL = 10.0  # seconds between two plain lines


class Bars:
    """One bar for each thing that is read, decoded or downloaded; the numbers are images, or bytes where `in_bytes`."""

    def __init__(self, console: Console, *, in_bytes: bool = False) -> None:
        self._bars = make_progress("description", "bar", "fields[note]", "left", console=console)
        self._console, self._in_bytes = console, in_bytes
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}  # when the last plain line was printed

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `what` is at `done` of `total`; a total of 0 is unknown."""
        note = self._amount(done, total)
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(printable(what), total=total or None, note=note)
        self._bars.update(self._tasks[what], completed=done, note=note)
        if not self._console.is_terminal:
            self._print_at_intervals(what, note, is_last=done >= total > 0)

    def _print_at_intervals(self, what: str, note: str, *, is_last: bool) -> None:
        now = time.monotonic()
        if is_last or now - self._printed.setdefault(what, now) >= INTERVAL:
            self._printed[what] = now
            say(f"{what}: {note}", to=self._console)

    def _amount(self, done: int, total: int) -> str:
        from peftbench.storage.sizes import format_size

        known = (done, total) if total else (done,)
        if self._in_bytes:
            return " of ".join(map(format_size, known))
        return f"{' of '.join(f'{number:,}' for number in known)} images"


def counters(console: Console) -> Progress:
    """Return bars that count things done, with the time they took, the time left and a note."""
    return make_progress("description", "bar", "count", "elapsed", "left", "fields[note]", console=console)


class Tally:
    """Things done one after another: a bar with the current name in a terminal, a line as each one ends elsewhere."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._bars = counters(console)
        self._console, self._total, self._ended = console, total, 0
        self._task = self._bars.add_task(printable(what), total=total, note="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, name: str) -> None:
        """Show the name of what is being done."""
        self._bars.update(self._task, note=printable(name))

    def end(self, name: str, outcome: str, *, keep: bool) -> None:
        """Count one more; in a terminal its line stays only if `keep`."""
        self._ended += 1
        self._bars.update(self._task, completed=self._ended, note="")
        if keep or not self._console.is_terminal:
            say(f"[{self._ended}/{self._total}] {name}: {outcome}", to=self._console)
