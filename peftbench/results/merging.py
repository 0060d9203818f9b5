"""Merge stores: the jobs of several stores in a new one, each verified, and nothing overwritten.

Two stores hold the same job if its id is the same: an id stands for everything that decides a result. On machines of
one kind both copies have the same bits; else the copy of the first store is taken, and the job is named as a conflict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.core.record import Record
from peftbench.errors import RequestError, StoreError
from peftbench.results.store import RESULTS, JobFolder, State, Store
from peftbench.storage import files

NOT_COMPARED = frozenset({"costs", "environment", "seal"})  # fields of a record that depend on the machine
PUBLIC = ("job.json", *RESULTS, "record.json")


@dataclass
class Merged:
    """What a merge has found, by job id."""

    copied: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)  # in several stores, with equal results
    conflicts: dict[str, str] = field(default_factory=dict)  # in several stores, with results that differ; and in what
    left_out: dict[str, str] = field(default_factory=dict)  # why: unfinished, damaged, failed where another is done


def merge(sources: Sequence[Path], out: Path, *, with_private: bool = False) -> Merged:
    """Copy the ended jobs of `sources` into the store `out`; jobs that it holds already stay as they are.

    Private files (image names and group keys) are copied only `with_private`. Raises StoreError where a source is no
    store, RequestError where `out` is one of the sources.
    """
    if out.resolve() in {source.resolve() for source in sources}:
        raise RequestError(f"--out {out} is one of the stores to merge; name another folder.")
    stores = [Store(source) for source in sources]
    found = {store.root: store.ids() for store in stores}  # all of them are stores, before anything is written
    target, merged = Store(out), Merged()
    target.prepare()
    jobs = [(store.job(name), *store.job(name).look()) for store in stores for name in found[store.root]]
    for job, state, _ in sorted(jobs, key=lambda one: one[1] != "done"):  # done ones first
        _take(job, state, target.job(job.id), merged, with_private=with_private)
    _join_studies(sources, out)
    return merged


def _take(source: JobFolder, state: State, target: JobFolder, merged: Merged, *, with_private: bool) -> None:
    """Copy one job, or compare it with the one that is there."""
    damage = source.damage() if state in {"done", "failed", "damaged"} else ""
    if damage or state not in {"done", "failed"}:
        merged.left_out[f"{source.store}: {source.id}"] = damage or f"it is {state}"
        return
    record, there = source.record(), target.record()
    assert record is not None  # noqa: S101 - its state is that of a record
    if there is None:
        if damage := _damaged_files(source, record):
            merged.left_out[f"{source.store}: {source.id}"] = damage
            return
        copy_job(source, target, with_private=with_private)
        merged.copied.append(source.id)
    elif record.status != there.status and there.status == "done":
        merged.left_out[f"{source.store}: {source.id}"] = "it failed, and is done in another store"
    elif record.status != there.status:
        merged.conflicts[source.id] = f"it is done in {source.store} and failed in {target.store}"
    elif differing := difference(record, there):
        merged.conflicts[source.id] = f"{source.store} differs in {', '.join(differing)}"
    else:
        merged.equal.append(source.id)
        if with_private and source.private_file.exists() and not target.private_file.exists():
            files.write_bytes(target.private_file, source.private_file.read_bytes(), private=True)


def difference(one: Record, other: Record) -> list[str]:
    """Return the fields in which the results of two records of a job differ."""
    own, theirs = _result(one), _result(other)
    return sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))


def _result(record: Record) -> Mapping[str, Any]:
    return record.model_dump(mode="json", exclude=set(NOT_COMPARED))


def _damaged_files(source: JobFolder, record: Record) -> str:
    """Return which files differ from the record's digests, those included that reports do not read."""
    found = ((name, source.path / name, digest) for name, digest in sorted(record.files.items()))
    wrong = [name for name, file, digest in found if not file.is_file() or files.sha256_file(file) != digest]
    return f"{', '.join(wrong)} was changed or is missing" if wrong else ""


def copy_job(source: JobFolder, target: JobFolder, *, with_private: bool) -> None:
    """Copy an ended job, its record last, as a running job writes it: a copy that is cut off is an unfinished job.

    Raises StoreError where a file does not match its digest in the record, or another process runs the job.
    """
    names = [name for name in (*PUBLIC, "private.json") if name != "private.json" or with_private]
    contents = {name: (source.path / name).read_bytes() for name in names if (source.path / name).is_file()}
    record = source.record()
    wrong = [
        name
        for name, digest in (record.files if record else {}).items()
        if name not in contents or files.sha256(contents[name]) != digest
    ]
    if record is None or wrong:
        raise StoreError(f"The job {source.path} is not whole: {', '.join(wrong) or 'it has no record'}.")
    last = contents.pop("record.json")
    with target.claim() as claimed:
        if not claimed:
            raise StoreError(f"The job {target.id} is running in {target.store}; wait until it has ended.")
        target.forget()
        for name, content in contents.items():
            files.write_bytes(target.path / name, content, private=True)
        files.write_bytes(target.record_file, last, private=True)


def _join_studies(sources: Sequence[Path], out: Path) -> None:
    """Write study.json with the jobs of all studies, if the sources have any; `asked` is that of the first study."""
    found: list[dict[str, Any]] = []
    for file in (out / "study.json", *(source / "study.json" for source in sources)):
        try:
            found.append(json.loads(file.read_bytes()))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise StoreError(f"The study {file} cannot be read ({type(error).__name__}).") from None
    if found:
        jobs = {name: job for study in reversed(found) for name, job in study.get("jobs", {}).items()}
        notes = dict.fromkeys(note for study in found for note in study.get("says", []))
        whole = {"asked": found[0].get("asked", {}), "jobs": jobs, "says": list(notes)}
        files.write_json(out / "study.json", whole, private=True)
