"""`peftbench status`: the state of every job of a store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.cli.console import say, show_json, show_rows
from peftbench.cli.options import STORE, JsonOption, StoreArgument

if TYPE_CHECKING:
    from peftbench.core.record import Record
    from peftbench.results.store import JobFolder, State

COLUMNS = ("job", "state", "method", "data set", "seed", "trained")
STILL = 60.0  # seconds without a sign of life that are worth a word
Row = tuple[str, ...]  # a cell for each of COLUMNS


@dataclass(frozen=True)
class Listed:
    """What is shown of a job; its record is not kept, of which a store may hold thousands."""

    state: State
    row: Row
    is_trial: bool
    problem: str  # why it failed or is damaged


def status(store: StoreArgument = STORE, json: JsonOption = False) -> None:
    """List the jobs of a store with their states. States: done, running, interrupted, failed, damaged."""
    from peftbench.results.store import Store

    listed = [describe(folder, *folder.look()) for folder in Store(store).jobs()]
    if json:
        show_json({job.row[0]: job.state for job in listed})
    else:
        show_states(listed)
        show_owners(store)


def show_owners(store: Path) -> None:
    """Print which process runs which job, and what Slurm has in its queue for this store."""
    from peftbench.execution import slurm_queue
    from peftbench.results import owner

    for file in sorted((store / "jobs").glob(f"*/{owner.FILE}")):
        if found := owner.read(file.parent):
            age = owner.age(file.parent)
            silent = f", no sign of life for {age:.0f} s" if age is not None and age > STILL else ""
            step = f", step {found.step:,}" if found.step else ""
            say(f"{file.parent.name} is run by {found}{step}{silent}.")
    for sentence in slurm_queue.states(store):
        say(sentence)


def show_states(listed: Sequence[Listed]) -> None:
    """Print the number of jobs in each state, why some failed, and a row for each job that is not a trial."""
    for state, count in sorted(Counter(job.state for job in listed).items()):
        say(f"{count:5d} {state}")
    for job in listed:
        if job.problem:
            say(f"{job.row[0]} {job.row[2]}: {job.problem}")
    rows = sorted((job.row for job in listed if not job.is_trial), key=_by_data_set)
    if len(rows) < len(listed):
        say(f"{len(listed) - len(rows)} of them are trials of learning rates and are not listed.")
    if rows:
        show_rows(COLUMNS, rows)


def _by_data_set(row: Row) -> Row:
    return row[3], row[2], *row[4:]


def describe(folder: JobFolder, state: State, record: Record | None) -> Listed:
    """Return what is shown of a job: its id, for `predict` and `merge`, and what it trains."""
    damage = folder.damage() if state == "damaged" else ""
    if record is None:
        return Listed(state, (folder.id, state, *_requested(folder.request_file)), is_trial=False, problem=damage)
    trained = f"{record.counts.trainable:,}" if record.counts else ""
    row = (folder.id, state, record.label, record.data.name, str(record.seed), trained)
    return Listed(state, row, record.role == "trial", damage or record.reason)


def _requested(file: Path) -> Row:
    """Return method, data set and seed of a job without a record; empty where its request cannot be read."""
    try:
        job = json.loads(file.read_bytes())
        return (str(job["alias"] or job["method"]), str(job["dataset"]), str(job["seed"]), "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ("", "", "", "")
