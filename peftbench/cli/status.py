"""`peftbench status`: the state of every job of a store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.cli.console import say, show_json, show_rows
from peftbench.cli.options import STORE, JsonOption, StoreArgument

if TYPE_CHECKING:
    from peftbench.core.record import Record
    from peftbench.results.store import JobFolder, State

COLUMNS = ("job", "state", "method", "data set", "seed", "trained")
Row = tuple[str, ...]  # a cell for each of COLUMNS


def status(store: StoreArgument = STORE, json: JsonOption = False) -> None:
    """List the jobs of a store with their states. States: done, running, interrupted, failed, damaged."""
    from peftbench.results.store import Store

    looks = {folder: folder.look() for folder in Store(store).jobs()}
    if json:
        show_json({folder.id: state for folder, (state, _) in looks.items()})
    else:
        show_states(looks)


def show_states(looks: Mapping[JobFolder, tuple[State, Record | None]]) -> None:
    """Print the number of jobs in each state, why some failed, and a row for each job that is not a trial."""
    for state, count in sorted(Counter(state for state, _ in looks.values()).items()):
        say(f"{count:5d} {state}")
    for folder, (state, record) in looks.items():
        if state == "damaged":
            say(f"{folder.id} {record.label if record else ''}: {folder.damage()}")
        elif record is not None and state == "failed":
            say(f"{record.id} {record.label}: {record.reason}")
    listed = [(folder, *look) for folder, look in looks.items() if not (look[1] and look[1].role == "trial")]
    if len(listed) < len(looks):
        say(f"{len(looks) - len(listed)} of them are trials of learning rates and are not listed.")
    if listed:
        rows = sorted((job_row(*one) for one in listed), key=_by_data_set)
        show_rows(COLUMNS, rows)


def _by_data_set(row: Row) -> Row:
    return row[3], row[2], *row[4:]


def job_row(folder: JobFolder, state: State, record: Record | None) -> Row:
    """Return the cells of a job: its id, for `predict` and `merge`, and what it trains."""
    if record is None:
        return (folder.id, state, *_requested(folder.request_file))
    trained = f"{record.counts.trainable:,}" if record.counts else ""
    return (folder.id, state, record.label, record.data.name, str(record.seed), trained)


def _requested(file: Path) -> Row:
    """Return method, data set and seed of a job without a record; empty where its request cannot be read."""
    try:
        job = json.loads(file.read_bytes())
        return (str(job["alias"] or job["method"]), str(job["dataset"]), str(job["seed"]), "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ("", "", "", "")
