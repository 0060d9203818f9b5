"""Slurm's commands, and the submissions of a store: which Slurm jobs it has, and what became of them.

Imports nothing heavy: `peftbench status` and `peftbench cancel` need no torch.

STORE/slurm/<time>-<digest>/jobs.json      the frozen list of jobs, see `job_list`
                            <phase>.sh     the scripts
                            slurm.json     the ids of the job arrays
                            log/           what the tasks print
                            cancelled      exists after `peftbench cancel`
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbench.errors import JobError
from peftbench.storage import files

FOLDER = "slurm"  # in a store
PATIENCE = 60.0  # seconds that a command of Slurm may take
SQUEUE = ("squeue", "--noheader", "--array", "--me", "--format=%F|%i|%T|%R")
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")


@dataclass(frozen=True)
class Queued:
    """A task of a job array, as squeue shows it."""

    array: str  # id of the array
    task: str  # 12_3
    state: str  # such as PENDING
    where: str  # its nodes, or the reason why it waits


def call(*words: str) -> str:
    """Return what a command of Slurm prints. Raises JobError with what it complains about."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603 - a list of words, which no shell reads
    except FileNotFoundError:
        raise JobError(f"Slurm's command {words[0]} is not on this machine; run this on a login node.") from None
    except subprocess.TimeoutExpired:
        raise JobError(f"{words[0]} did not answer within {PATIENCE:g} s; is slurmctld running?") from None
    if done.returncode:
        complaints = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = complaints[-1].strip().rstrip(".")  # the first ones are what it tried
        raise JobError(f"{words[0]} failed: {reason}.")
    return done.stdout


def queue() -> list[Queued]:
    """Return this user's tasks that wait or run, by one call of squeue. Raises JobError when it does not answer."""
    return parse_queue(call(*SQUEUE))


def parse_queue(text: str) -> list[Queued]:
    """Return the tasks in the output of SQUEUE; lines of another form are left out."""
    rows = (line.strip().split("|", 3) for line in text.splitlines())
    return [Queued(*row) for row in rows if len(row) == len(Queued.__dataclass_fields__)]


def max_array_size() -> int:
    """Return the number of tasks that an array may have on this cluster. Raises JobError without Slurm."""
    return parse_max_array_size(call("scontrol", "show", "config"))


def parse_max_array_size(text: str) -> int:
    """Return MaxArraySize in the output of `scontrol show config`; Slurm's default, 1001, where it is not listed."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return max(1, int(found.group(1))) if found else 1001


@dataclass(frozen=True)
class Submission:
    """A study that was submitted from this store."""

    folder: Path

    @property
    def list_file(self) -> Path:
        """The path of the frozen list of jobs."""
        return self.folder / "jobs.json"

    @property
    def digest(self) -> str:
        """The digits that stand for the jobs of the list."""
        return self.folder.name.rpartition("-")[2]

    def ids(self) -> dict[str, str]:
        """Return the id of each phase's job array; empty before it was submitted."""
        try:
            found = json.loads((self.folder / "slurm.json").read_bytes())
            return {str(phase): str(job) for phase, job in sorted(found.items(), key=lambda item: int(item[1]))}
        except (OSError, ValueError, AttributeError):
            return {}

    def write_ids(self, ids: dict[str, str]) -> None:
        """Write the ids, after each array that was submitted. Raises OSError."""
        files.write_json(self.folder / "slurm.json", ids, private=True)

    @property
    def is_cancelled(self) -> bool:
        """Whether `peftbench cancel` was called."""
        return (self.folder / "cancelled").exists()

    def queued(self, tasks: Sequence[Queued]) -> list[Queued]:
        """Return those of the tasks that belong to this submission."""
        own = set(self.ids().values())
        return [task for task in tasks if task.array in own]

    def describe(self, tasks: Sequence[Queued]) -> str:
        """Return a sentence on the tasks in the queue: `Slurm 12 (trials): 3 running, 5 pending (Resources)`."""
        found = []
        for phase, job in self.ids().items():
            own = [task for task in tasks if task.array == job]
            states = Counter(task.state.lower() for task in own)
            reasons = sorted({task.where.strip("()") for task in own if task.state == "PENDING"})
            why = f" ({', '.join(reasons)})" if reasons else ""
            if own:
                found.append(
                    f"{job} ({phase}): {', '.join(f'{count} {state}' for state, count in states.items())}{why}"
                )
        return f"Slurm {'; '.join(found)}." if found else ""


def submissions(store: Path) -> list[Submission]:
    """Return the submissions of a store, the oldest first."""
    root = store / FOLDER
    found = sorted(root.iterdir()) if root.is_dir() else []
    return [Submission(folder) for folder in found if folder.is_dir()]


def states(store: Path) -> list[str]:
    """Return a sentence for each submission that has tasks in the queue, by one call of squeue; none without Slurm."""
    found = [one for one in submissions(store) if one.ids()]
    if not found:
        return []
    try:
        tasks = queue()
    except JobError as error:
        return [f"The queue of Slurm is unknown: {error}"]
    return [text for one in found if (text := one.describe(tasks))]


def cancel(store: Path) -> list[str]:
    """Cancel every task of a store that waits or runs; return the ids of their arrays. Raises JobError, OSError."""
    tasks = queue()
    found: list[str] = []
    for one in submissions(store):
        if arrays := sorted({task.array for task in one.queued(tasks)}):
            files.write_text(one.folder / "cancelled", "", private=True)  # before: a task that ends does not requeue
            found += arrays
    if found:
        call("scancel", *found)
    return found


def requeue(task: str) -> bool:
    """Put a running task, 12_3, back into the queue; return False if Slurm ends it for another reason.

    A task that was cancelled, or that Slurm itself has put back after a preemption, is in another state.
    Raises JobError when Slurm does not answer.
    """
    if call("squeue", "--noheader", f"--jobs={task}", "--format=%T").strip() != "RUNNING":
        return False
    call("scontrol", "requeue", task)
    return True


def python_path() -> str:
    """Return the line of a script that lets its Python find the packages that this one finds; empty if none is set."""
    path = os.environ.get("PYTHONPATH")
    return f"export PYTHONPATH={shlex.quote(path)}\n" if path else ""
