"""`peftbench status`: the state of every job of a store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.cli.console import make_table, say, show, show_json
from peftbench.cli.options import STORE, JsonOption, StoreArgument

if TYPE_CHECKING:
    from peftbench.results.store import JobFolder

COLUMNS = ("job", "state", "method", "data set", "seed", "trained")
Row = tuple[str, ...]  # a cell for each of COLUMNS


def status(store: StoreArgument = STORE, json: JsonOption = False) -> None:
    """List the jobs of a store with their states. States: done, running, interrupted, failed."""
    from peftbench.results.store import Store

    states: dict[JobFolder, str] = {folder: folder.state() for folder in Store(store).jobs()}
    if json:
        show_json({folder.id: state for folder, state in states.items()})
    else:
        show_states(states)


def show_states(states: Mapping[JobFolder, str]) -> None:
    """Print the number of jobs in each state, why some failed, and a row for each job that is not a trial."""
    for state, count in sorted(Counter(states.values()).items()):
        say(f"{count:5d} {state}")
    for record in (folder.record() for folder, state in states.items() if state == "failed"):
        if record is not None:
            say(f"{record.id} {record.label}: {record.reason}")
    rows = sorted(
        (job_row(folder, state) for folder, state in states.items() if not _is_trial(folder)), key=_by_data_set
    )
    if len(rows) < len(states):
        say(f"{len(states) - len(rows)} of them are trials of learning rates and are not listed.")
    if rows:
        show(make_table(COLUMNS, rows), on_one_line=True)


def _by_data_set(row: Row) -> Row:
    return row[3], row[2], *row[4:]


def _is_trial(folder: JobFolder) -> bool:
    record = folder.record()
    return record is not None and record.role == "trial"


def job_row(folder: JobFolder, state: str) -> Row:
    """Return the cells of a job: its id, for `predict` and `merge`, and what it trains."""
    record = folder.record()
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
