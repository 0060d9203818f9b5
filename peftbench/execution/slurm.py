"""Jobs as arrays of Slurm.

The head resolves the study, writes the frozen list of jobs into the store and submits one array for each phase of the
list, each after the one before. From then on nothing needs the head: it only watches the store.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, TypeAlias

from filelock import UnixFileLock

from peftbench.core.fields import Positive, checked
from peftbench.core.spec import Job, Places
from peftbench.errors import JobError, RequestError
from peftbench.execution import job_list, slurm_queue
from peftbench.execution.executor import Monitor, Parallel, Tick, Timeout, run_in_rounds
from peftbench.execution.job_list import Bundling, JobList
from peftbench.execution.slurm_queue import Submission
from peftbench.results import owner
from peftbench.results.store import Store
from peftbench.storage import files
from peftbench.study.resolve import Resolved

RESERVED = ("array", "dependency", "signal", "requeue", "no-requeue", "open-mode", "output", "error", "wait")
WARNING = 180  # seconds before the end of its time at which a task is asked to stop
START = 600  # seconds for a task to start, which its time limit includes
POLL = 5.0  # seconds between two looks at the store
QUEUE_POLL = 30.0  # seconds between two calls of squeue
Option: TypeAlias = str | int | float | bool


@checked
class SlurmExecutor:
    """Submits a study to Slurm, and watches it."""

    called: ClassVar[str] = "executor slurm"

    parallel: Parallel = 0  # tasks of an array at the same time; 0: no limit but Slurm's
    timeout: Timeout | None = None  # seconds after which a job fails
    bundle: Positive = 30.0  # minutes: the length of a task by the forecast
    requeues: Parallel = 20  # how often a task goes on after its time was up or it was preempted
    dry_run: bool = False  # write and show scripts and list, submit nothing
    options: Mapping[str, Option] = field(default_factory=dict)  # long options of sbatch

    def __post_init__(self) -> None:
        for name in self.options:
            if name.replace("_", "-") in RESERVED:
                raise RequestError(f"--slurm {name}: peftbench sets this option of sbatch itself; leave it out.")

    @property
    def elsewhere(self) -> bool:
        """Whether jobs run on other machines."""
        return True

    @property
    def wants_gpu(self) -> bool:
        """Whether a GPU is asked for."""
        return any(name.startswith("gpus") or (name == "gres" and "gpu" in str(v)) for name, v in self.options.items())

    def run_study(self, resolved: Resolved, places: Places, monitor: Monitor) -> None:
        """Submit the study, unless it is in the queue already, and wait until each job has a record.

        Raises JobError when Slurm's commands are missing or refuse, KeyboardInterrupt on Ctrl-C: the tasks go on.
        """
        places = places.absolute()
        root = files.make_private_folder(places.store / slurm_queue.FOLDER)
        with UnixFileLock(root / ".lock", mode=files.PRIVATE_FILE):
            submission = self._submission(resolved, places, monitor)
        if submission is None:
            return
        try:
            run_in_rounds(_Watch(submission), resolved, places, monitor)
        except KeyboardInterrupt:
            monitor.warn(_going_on(submission, places.store))
            raise

    def _submission(self, resolved: Resolved, places: Places, monitor: Monitor) -> Submission | None:
        """Return the submission of this study: the one that is in the queue, or a new one; None after a dry run."""
        most = 0 if self.dry_run else slurm_queue.max_array_size()
        listed = job_list.make(resolved, places, Bundling(60 * self.bundle, self.parallel, most))
        listed = replace(listed, timeout=self.timeout)
        if not self.dry_run and (former := _in_queue(places.store, listed.digest)):
            monitor.note(f"This study is in the queue already: {_ids(former)}. Watching it.")
            return former
        if not any(listed.tasks.values()):
            return Submission(places.store)
        submission = self._write(listed)
        if self.dry_run:
            _show(submission, listed, monitor)
            return None
        _forget_failed(listed)
        _submit(submission, listed)
        monitor.note(_going_on(submission, places.store))
        return submission

    def _write(self, listed: JobList) -> Submission:
        """Write the list and the scripts into a new folder of the store."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        found = Submission(listed.places.store / slurm_queue.FOLDER / f"{now}-{listed.digest}")
        files.make_private_folder(found.folder / "log")
        job_list.write(found.list_file, listed)
        for phase in phases(listed):
            files.write_text(found.folder / f"{phase}.sh", self.script(found, listed, phase), private=True)
        return found

    def script(self, submission: Submission, listed: JobList, phase: str) -> str:
        """Return the script of a phase's job array."""
        last = len(listed.tasks[phase]) - 1
        at_once = f"%{self.parallel}" if self.parallel else ""
        threads = max((draft.job.threads or 1 for draft in listed.drafts), default=1)
        given = {name.replace("_", "-"): value for name, value in self.options.items()}
        options: dict[str, Option] = {
            "job-name": f"peftbench-{phase}",
            "cpus-per-task": threads,
            **_time(listed.seconds[phase]),
            **given,
            "array": f"0-{last}{at_once}",
            "output": str(submission.folder / "log" / f"{phase}-%a.txt"),
            "open-mode": "append",
            "requeue": True,
            "signal": f"B:TERM@{WARNING}",
        }
        lines = [f"#SBATCH --{name}{_value(value)}" for name, value in options.items() if value is not False]
        words = [sys.executable, "-m", "peftbench.execution.node", str(submission.list_file), phase, str(self.requeues)]
        command = f'exec {shlex.join(words)} "$SLURM_ARRAY_TASK_ID"'
        return "\n".join(["#!/bin/sh", *lines, "", f"{slurm_queue.python_path()}{command}", ""])


plugin = SlurmExecutor


def phases(listed: JobList) -> list[str]:
    """Return the phases that have tasks, in their order."""
    return [phase for phase in job_list.PHASES if listed.tasks[phase]]


def _value(value: Option) -> str:
    if value is True:
        return ""
    text = str(value)
    return f'="{text}"' if any(one in text for one in " \t#'\\") else f"={text}"


def _time(seconds: float | None) -> dict[str, Option]:
    """Return the time limit: twice the forecast, and time to start; none where the forecast is unknown."""
    if seconds is None:
        return {}
    minutes = -int(-(2 * seconds + START + WARNING) // 60)
    return {"time": f"{minutes // 60}:{minutes % 60:02d}:00"}


def _in_queue(store: Path, digest: str) -> Submission | None:
    """Return a submission of the same jobs that has tasks in the queue."""
    former = [one for one in slurm_queue.submissions(store) if one.digest == digest and one.ids()]
    tasks = slurm_queue.queue() if former else []
    return next((one for one in reversed(former) if one.queued(tasks)), None)


def _forget_failed(listed: JobList) -> None:
    """Remove the records of failed jobs, which run again."""
    store = Store(listed.places.store)
    for phase in ("trials", "finals"):
        for number in range(len(listed.tasks[phase])):
            for job in listed.jobs(phase, number):
                folder = store.job(job.id)
                if folder.state() == "failed":
                    with folder.claim() as claimed:
                        if claimed:
                            folder.forget()


def _submit(submission: Submission, listed: JobList) -> None:
    """Submit the array of each phase after the one before. Raises JobError; `cancel` finds those before."""
    ids: dict[str, str] = {}
    for phase in phases(listed):
        after = [f"--dependency=afterany:{list(ids.values())[-1]}"] if ids else []
        try:
            answer = slurm_queue.call("sbatch", "--parsable", *after, str(submission.folder / f"{phase}.sh"))
        except JobError as error:
            more = f" {_ids(submission)} is submitted; `peftbench cancel` removes it." if ids else ""
            raise JobError(f"{error}{more}") from None
        ids[phase] = answer.strip().partition(";")[0]
        submission.write_ids(ids)


def _ids(submission: Submission) -> str:
    return "Slurm " + ", ".join(f"{job} ({phase})" for phase, job in submission.ids().items())


def _going_on(submission: Submission, store: Path) -> str:
    where = shlex.quote(str(store))
    verbs = f"`peftbench status {where}` shows its jobs, `peftbench cancel {where}` ends them"
    return f"{_ids(submission)} runs without this process: {verbs}."


def _show(submission: Submission, listed: JobList, monitor: Monitor) -> None:
    """Print the scripts and the list of tasks."""
    for phase in phases(listed):
        file = submission.folder / f"{phase}.sh"
        monitor.note(f"# {file}")
        for line in file.read_text(encoding="utf-8").splitlines():
            monitor.note(line)
        monitor.note("")
    for line in job_list.described(listed):
        monitor.note(line)
    monitor.note(f"Nothing is submitted. The list of jobs is {submission.list_file}.")


@dataclass
class _Watch:
    """Waits for jobs that tasks of Slurm run."""

    submission: Submission
    is_silent: bool = False  # whether it was reported that squeue does not answer

    def __call__(self, jobs: Sequence[Job], places: Places, monitor: Monitor) -> None:
        """Report the progress and the records of jobs until each has one, or Slurm has no more tasks for them."""
        left = {job.id: job for job in jobs}
        asked, was_idle = time.monotonic(), False
        while True:
            self._look(left, Store(places.store), monitor)
            if not left:
                return
            if was_idle:
                logs = self.submission.folder / "log"
                monitor.warn(f"Slurm has no more tasks of this study, and {len(left)} jobs have no record; see {logs}.")
                return
            if time.monotonic() - asked > QUEUE_POLL:
                asked, was_idle = time.monotonic(), not self._is_queued(monitor)
            time.sleep(POLL)

    def _look(self, left: dict[str, Job], store: Store, monitor: Monitor) -> None:
        """Report what has changed in the folders of the jobs; those that ended are taken out of `left`."""
        for job in list(left.values()):
            folder = store.job(job.id)
            if folder.record_file.exists() and (record := folder.record()):
                del left[job.id]
                monitor.ended(job, record)
            elif found := owner.read(folder.path):
                monitor.tick(Tick(job.id, found.step, found.rate, found.best))

    def _is_queued(self, monitor: Monitor) -> bool:
        """Return whether Slurm has tasks of this submission; also when it does not answer."""
        try:
            return bool(self.submission.queued(slurm_queue.queue()))
        except JobError as error:
            if not self.is_silent:
                monitor.warn(f"{error} Watching the store only.")
            self.is_silent = True
            return True
