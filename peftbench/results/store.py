"""A folder per job, `record.json` written last: the files on disk are the state of a study.

jobs/<id>/job.json             the resolved request
          state/               checkpoint while running; removed when done
          curve.csv            the learning curve
          predictions.npz      logits of the chosen steps, labels, group numbers
          private.json         image names and group keys; never copied by a report
          delta.safetensors, delta.json
          owner.json           the process that runs the job; removed when it ends
          record.json          last

Every folder and file is readable by its owner only.
"""

from __future__ import annotations

import csv
import io
import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import Timeout, UnixFileLock
from numpy.typing import NDArray
from pydantic import ValidationError

from peftbench.core.contract import AGAIN, Result
from peftbench.core.record import Record
from peftbench.errors import RequestError, StoreError
from peftbench.results import owner
from peftbench.storage import files

RESULTS = ("curve.csv", "predictions.npz", "delta.safetensors", "delta.json")  # whose digests a record holds
LEFT = ("record.json", "state", "private.json", owner.FILE, *RESULTS)  # what a failed job may leave beside its request
State = Literal["new", "interrupted", "running", "failed", "damaged", "done"]


@dataclass(frozen=True)
class JobFolder:
    """The files of one job."""

    path: Path

    @property
    def id(self) -> str:
        """Return the job's id, which is the folder's name."""
        return self.path.name

    @property
    def store(self) -> Path:
        """Return the root of the store."""
        return self.path.parent.parent

    @property
    def request_file(self) -> Path:
        """Return the path of the resolved request."""
        return self.path / "job.json"

    @property
    def checkpoint_file(self) -> Path:
        """Return the path of the checkpoint, in a folder that exists while the job is unfinished."""
        return self.path / "state" / "checkpoint.safetensors"

    @property
    def curve_file(self) -> Path:
        """Return the path of the learning curve."""
        return self.path / "curve.csv"

    @property
    def predictions_file(self) -> Path:
        """Return the path of the logits, labels and group numbers."""
        return self.path / "predictions.npz"

    @property
    def record_file(self) -> Path:
        """Return the path of the record."""
        return self.path / "record.json"

    @property
    def private_file(self) -> Path:
        """Return the path of the image names and group keys."""
        return self.path / "private.json"

    def state(self) -> State:
        """Return the state of the job, as `look` does."""
        return self.look()[0]

    def look(self) -> tuple[State, Record | None]:
        """Return the state as the files show it, and the record if there is one.

        Fast, for stores of thousands of jobs: the record's seal and the contents of the files beside it are not
        checked, which `record` and `damage` do. A record that cannot be read is damaged.
        """
        try:
            with os.scandir(self.path) as found:  # one call in place of one for each file
                names = {entry.name for entry in found}
            record = _parsed(self.record_file) if "record.json" in names else None
        except FileNotFoundError:
            return "new", None
        except (OSError, StoreError):
            return "damaged", None
        if record is None or "state" in names:
            return self._unfinished(), record
        return record.status if record.id == self.id and names.issuperset(record.files) else "damaged", record

    def _unfinished(self) -> State:
        if not os.access(self.path, os.W_OK):  # the reader of this store could not run the job
            return "interrupted"
        with self.claim() as claimed:
            return "running" if not claimed or owner.runs_elsewhere(self.path) else "interrupted"

    def damage(self) -> str:
        """Return what is wrong with the record of an ended job or with the files beside it; empty if all is whole."""
        try:
            result = self.result()
        except StoreError as error:
            return str(error)
        return result.damage if result else ""

    def record(self) -> Record | None:
        """Return the record of a finished or failed job, None before. Raises StoreError when it cannot be read."""
        record = read_record(self.record_file)
        if record is not None and record.id != self.id:
            raise StoreError(f"The record {self.record_file} is of another job, {record.id}; {AGAIN}")
        return record

    def result(self) -> Result | None:
        """Return the job as reports see it, None before it ended. Raises StoreError when the record cannot be read."""
        record = self.record()
        return Result(record, self.path) if record is not None else None

    def write_record(self, record: Record) -> Record:
        """Write the record, sealed and with the digests of the files beside it; return it as written."""
        found = {name: self.path / name for name in RESULTS if (self.path / name).exists()}
        digests = {name: files.sha256_file(file) for name, file in found.items()}
        whole = record.model_copy(update={"files": digests}).sealed()
        files.write_bytes(self.record_file, whole.model_dump_json(indent=1).encode(), private=True)
        return whole

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Lock the job against other processes; yield False when another process holds it.

        The lock ends with the block or with the process. Its file stays, so that all processes lock the same one.
        Raises StoreError where the folder cannot be written or the file system has no locks.
        """
        lock = UnixFileLock(self.path / ".lock", mode=files.PRIVATE_FILE, fallback_to_soft=False)
        claimed = self._acquire(lock)
        try:
            yield claimed
        finally:
            lock.release()

    def _acquire(self, lock: UnixFileLock) -> bool:
        try:
            files.make_private_folder(self.path)
            lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            if error.filename:
                raise StoreError(_unwritable(self.path, error)) from None
            problem = f"{self.store} is on a file system that cannot lock files ({error.strerror})"
            raise StoreError(f"{problem}; choose another folder with --store.") from None
        return True

    def sweep(self) -> None:
        """Remove incomplete files of a killed process; only for the holder of the job."""
        files.remove_temporaries(self.path)

    def forget(self) -> None:
        """Remove the files of a failed job except its request, so that it can run again."""
        for name in LEFT:
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def write_request(self, value: Mapping[str, Any]) -> None:
        """Write the resolved request."""
        files.write_json(self.request_file, value, private=True)

    def write_private(self, value: Mapping[str, Any]) -> None:
        """Write image names and group keys, which may identify patients."""
        files.write_json(self.private_file, value, private=True)

    def write_curve(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write the learning curve as CSV, one row per evaluation; the first row names the columns."""
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        files.write_text(self.curve_file, text.getvalue(), private=True)

    def write_predictions(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write arrays as .npz without pickles, sorted by name: the same arrays give the same bytes."""
        packed = io.BytesIO()
        np.savez_compressed(packed, **dict(sorted(arrays.items())))  # type: ignore[arg-type]
        files.write_bytes(self.predictions_file, packed.getbuffer(), private=True)


@dataclass(frozen=True)
class Store:
    """The folder given with --store."""

    root: Path

    def job(self, job_id: str) -> JobFolder:
        """Return the folder of one job, which need not exist yet."""
        return JobFolder(self.root / "jobs" / job_id)

    def jobs(self) -> list[JobFolder]:
        """Return the folders of all jobs that were started, by id. Raises StoreError when this is not a store."""
        return [self.job(name) for name in self.ids()]

    def prepare(self) -> bool:
        """Make the folder for its owner only; return whether it is new. Raises StoreError where that fails."""
        new = not self.root.exists()
        try:
            files.make_private_folder(self.root / "jobs")
            probe = self.root / f".{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(_unwritable(self.root, error)) from None
        return new

    def ids(self) -> list[str]:
        """Return the ids of all jobs that were started. Raises StoreError when this is not a store."""
        if not (self.root / "jobs").is_dir():
            raise StoreError(f"There are no results in {self.root}; run a study first, or name another folder.")
        return sorted(p.name for p in (self.root / "jobs").iterdir() if p.is_dir() and not p.name.startswith("."))

    def discard(self) -> None:
        """Remove the store if it is empty."""
        with suppress(OSError):
            (self.root / "jobs").rmdir()
            self.root.rmdir()

    def results(
        self, on_problem: Callable[[str], object] | None = None, ids: Iterable[str] | None = None
    ) -> list[Result]:
        """Return every finished or failed job, or those of `ids`, by id. Raises StoreError when this is not a store.

        A job whose record cannot be read is left out after a call of `on_problem` with the reason; without
        `on_problem` it raises StoreError.
        """
        found: list[Result] = []
        for job in self.jobs() if ids is None else map(self.job, sorted(ids)):
            try:
                found += [result] if (result := job.result()) is not None else []
            except StoreError as error:
                if on_problem is None:
                    raise
                on_problem(str(error))
        return found


def no_finished_job(store: Path) -> RequestError:
    """Return the error for a store without a finished job."""
    listing = f"`peftbench status {shlex.quote(str(store))}` lists the unfinished ones"
    return RequestError(f"{store} holds no finished job; {listing}.")


def find_job(store: Path, text: str) -> Path:
    """Return the folder of a job, given by its path, its id, or the first digits of it.

    Raises RequestError when no job, or more than one, is meant, or the job has no trained model.
    """
    if (Path(text) / "delta.json").is_file():
        return Path(text)
    jobs = store / "jobs"
    found = sorted(p for p in jobs.iterdir() if p.name.startswith(text)) if jobs.is_dir() and text else []
    if len(found) != 1:
        reason = f"the ids of {len(found)} jobs in {store} begin with it" if found else f"no job in {store} has that id"
        raise RequestError(
            f"Cannot find the job {text!r}: {reason}; `peftbench status {shlex.quote(str(store))}` lists them."
        )
    if not (found[0] / "delta.json").is_file():
        raise RequestError(f"The job {found[0].name} has no trained model: {_no_model(Store(store), found[0].name)}.")
    return found[0]


def _no_model(store: Store, name: str) -> str:
    """Return why a job has no delta."""
    record = store.job(name).record()
    if record is not None and "delta.json" in record.files:
        return "its delta.json is missing"
    return "it failed, is a trial, or its method trains nothing"


def read_record(file: Path) -> Record | None:
    """Return the content of a record.json, None without such a file. Raises StoreError when it was changed."""
    record = _parsed(file)
    if record is not None and not record.intact:
        raise StoreError(f"The record {file} was changed after it was written; {AGAIN}")
    return record


def _parsed(file: Path) -> Record | None:
    try:
        return Record.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise StoreError(f"The record {file} cannot be read ({type(error).__name__}); {AGAIN}") from None


def _unwritable(folder: Path, error: OSError) -> str:
    return f"Cannot write results into {folder} ({error.strerror}); choose another folder with --store."


def make_output_folder(file: Path) -> None:
    """Make the folder of an output file early, so that no work is lost because of it. Raises RequestError."""
    if file.is_dir():
        raise RequestError(f"--out {file} is a folder; name a file.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"Cannot write {file}: {file.parent} is no folder ({error.strerror}).") from None
