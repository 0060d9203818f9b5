"""A folder a job, `record.json` written last: what lies on disk is the state of a study.

jobs/<id>/job.json             the resolved request
          state/               checkpoint while running; gone when done
          curve.csv            the learning curve
          predictions.npz      logits of the chosen steps, labels, group numbers
          private.json         image names and group keys; never copied by a report
          delta.safetensors, delta.json
          record.json          last
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from peftbench.core.contract import Result
from peftbench.core.record import Record
from peftbench.errors import RequestError, StoreError

DRAFTS = ".*.draft"
RESULTS = ("curve.csv", "predictions.npz", "delta.safetensors", "delta.json")  # what a record vouches for
State = Literal["new", "interrupted", "running", "failed", "done"]


AGAIN = "move its folder away and run the study again."


@dataclass(frozen=True)
class Store:
    """The folder given with --store."""

    root: Path

    def folder(self, job_id: str) -> Path:
        """Of one job."""
        return self.root / "jobs" / job_id

    def prepare(self) -> bool:
        """Make the folder, readable by its owner only; whether it is new. Raises StoreError where that cannot be."""
        new = not self.root.exists()
        try:
            for folder in (self.root, self.root / "jobs"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self.root / f".{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(_unwritable(self.root, error)) from None
        return new

    def ids(self) -> list[str]:
        """Of every job that was begun here. Raises StoreError when there is no store here."""
        if not (self.root / "jobs").is_dir():
            raise StoreError(f"There are no results in {self.root}; run a study first, or say where it is.")
        return sorted(p.name for p in (self.root / "jobs").iterdir() if p.is_dir() and not p.name.startswith("."))

    def discard(self) -> None:
        """Take an empty store away again; one that holds anything stays."""
        with suppress(OSError):
            (self.root / "jobs").rmdir()
            self.root.rmdir()

    def state(self, job_id: str) -> State:
        """From the disk alone."""
        record = self.record(job_id)
        if record is not None and not (self.folder(job_id) / "state").exists():
            return record.status
        folder = self.folder(job_id)
        if not folder.exists():
            return "new"
        if not os.access(folder, os.W_OK):  # nobody who reads this store can run the job
            return "interrupted"
        with self.claim(job_id) as mine:
            return "interrupted" if mine else "running"

    def record(self, job_id: str) -> Record | None:
        """Of a finished or failed job. Raises StoreError when it cannot be read."""
        file = self.folder(job_id) / "record.json"
        record = read_record(file)
        if record is not None and record.id != job_id:
            raise StoreError(f"The record {file} is of another job, {record.id}; {AGAIN}")
        return record

    def write_record(self, record: Record) -> Record:
        """Put a record into its job's folder, sealed, with the digests of what lies there; returns it so."""
        folder = self.folder(record.id)
        found = {name: folder / name for name in RESULTS if (folder / name).exists()}
        digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in found.items()}
        whole = record.model_copy(update={"files": digests}).sealed()
        write_bytes(folder / "record.json", whole.model_dump_json(indent=1).encode())
        return whole

    def results(self) -> list[Result]:
        """Every finished or failed job, by id. Raises StoreError when there is no store here."""
        records = ((name, self.record(name)) for name in self.ids())
        return [Result(record, self.folder(name)) for name, record in records if record is not None]

    @contextmanager
    def claim(self, job_id: str) -> Iterator[bool]:
        """Hold a job against other processes; False when another holds it.

        Let go when the process ends, however it ends.
        """
        with self._lock(job_id) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                message = f"{self.root} is on a file system that cannot lock files ({error.strerror})"
                raise StoreError(f"{message}; choose another folder with --store.") from None
            yield True

    def _lock(self, job_id: str) -> TextIO:
        """The open file that is locked; it stays, so that all lock the same."""
        folder = self.folder(job_id)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return (folder / ".lock").open("w")
        except OSError as error:
            raise StoreError(_unwritable(folder, error)) from None

    def sweep(self, job_id: str) -> None:
        """Remove the drafts that a killed process left; only for who holds the job."""
        for draft in self.folder(job_id).rglob(DRAFTS):
            draft.unlink()

    def forget(self, job_id: str) -> None:
        """Remove what a failed job left, so that it can run again."""
        for name in (
            "record.json",
            "state",
            "curve.csv",
            "predictions.npz",
            "private.json",
            "delta.safetensors",
            "delta.json",
        ):
            path = self.folder(job_id) / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_record(file: Path) -> Record | None:
    """What a record.json says; None where there is none. Raises StoreError when it is not what was written."""
    try:
        record = Record.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise StoreError(f"The record {file} cannot be read ({type(error).__name__}); {AGAIN}") from None
    if not record.intact:
        raise StoreError(f"The record {file} was changed after it was written; {AGAIN}")
    return record


def _unwritable(folder: Path, error: OSError) -> str:
    return f"Cannot write results into {folder} ({error.strerror}); choose another folder with --store."


def make_room(file: Path) -> None:
    """The folder of a file that will be written, so that no work is lost for want of it. Raises RequestError."""
    if file.is_dir():
        raise RequestError(f"--out {file} is a folder; name a file.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"Cannot write {file}: {file.parent} is no folder ({error.strerror}).") from None


def is_full(error: Exception) -> bool:
    """Whether an error, Python's or safetensors', says that a disk or a quota is full."""
    return getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or "(os error 28)" in str(error)


def write_bytes(file: Path, content: bytes) -> None:
    """All or nothing: written beside, flushed to the disk, renamed."""
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}.draft")
    try:
        with draft.open("xb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except OSError as error:
        error.filename, error.filename2 = str(file), None  # of the draft nobody has heard
        raise
    finally:
        draft.unlink(missing_ok=True)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Atomically, sorted, readable by people."""
    write_bytes(file, json.dumps(value, indent=1, sort_keys=True, default=list).encode())


def write_curve(file: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """One row an evaluation."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    write_bytes(file, text.getvalue().encode())


def write_predictions(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """As .npz without pickles; in alphabetical order, so that the same arrays are the same bytes."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **dict(sorted(arrays.items())))  # type: ignore[arg-type]
    write_bytes(file, packed.getvalue())
