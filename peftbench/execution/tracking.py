"""Trackers of a run: each finished job is handed to them in the process that runs the executor.

Jobs know nothing of it, so their ids and their numbers are the same with and without trackers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from peftbench.core.contract import Result, Tracker
from peftbench.core.guarded import first_line
from peftbench.core.record import Record
from peftbench.core.registry import registry
from peftbench.core.spec import Job
from peftbench.errors import PluginError, RequestError
from peftbench.execution.executor import Monitor, Tick
from peftbench.results.redaction import public_names
from peftbench.results.store import Store
from peftbench.results.tracking import tracked

FAILED = "The tracker {name} failed and receives no more jobs; the study goes on ({why})."


def make_trackers(names: Sequence[str], store: Path) -> dict[str, Tracker]:
    """Return the trackers by name.

    Raises UnknownNameError, RequestError for one whose extra is not installed, PluginError for one that cannot be made.
    """
    found: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        kind = registry("trackers").get(name)
        try:
            found[name] = kind(store)
        except (RequestError, PluginError):
            raise
        except Exception as error:
            raise PluginError(f"{registry('trackers').describe(name)} cannot be made: {first_line(error)}") from error
    return found


class Tracking:
    """A monitor that also hands finished jobs to trackers; one that raises is named once and receives no more."""

    def __init__(self, monitor: Monitor, trackers: Mapping[str, Tracker], store: Path) -> None:
        self.monitor, self.trackers, self.store = monitor, dict(trackers), Store(store)
        self.datasets: set[str] = set()

    def begin(self, what: str, jobs: Sequence[Job]) -> None:
        """Pass on the jobs that run next."""
        self.datasets |= {job.dataset for job in jobs}
        self.monitor.begin(what, jobs)

    def tick(self, tick: Tick) -> None:
        """Pass on the progress of a job."""
        self.monitor.tick(tick)

    def note(self, text: str) -> None:
        """Pass on a sentence."""
        self.monitor.note(text)

    def warn(self, text: str) -> None:
        """Pass on a warning."""
        self.monitor.warn(text)

    def ended(self, job: Job, record: Record) -> None:
        """Pass on a job that ended, and hand it to the trackers if it is done."""
        self.monitor.ended(job, record)
        if record.status == "done" and self.trackers:
            name = public_names({*self.datasets, job.dataset})[job.dataset]
            found = tracked(Result(record, self.store.job(job.id).path), name)
            self._each(lambda tracker: tracker.track(found))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001 - a tracker never stops a study
                del self.trackers[name]
                self.monitor.warn(FAILED.format(name=name, why=first_line(error)))
