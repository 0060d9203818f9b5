"""check_report: writes where it may, repeatably, and copes with failures; on a small faked study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Report, Result
from peftbench.core.record import SCHEMA, Record
from peftbench.results.store import JobFolder
from peftbench.testing.findings import Finding, Rule, demand, judge, refuse_torch

PRIVATE = "patient_0017.png"  # an image's name: stands in a job's private file and in a failure's reason
RULES_OF_CHOICE = ("validation", "last", "oracle")


@dataclass(frozen=True)
class Desk:
    """A report, a store of faked jobs and a folder to write into."""

    report: Report
    store: Path
    out: Path

    def results(self) -> list[Result]:
        """Two methods on two data sets, and one job that failed."""
        done = [_job(self.store, method, data) for method in ("linear", "lora") for data in ("busi", "phantom_ct")]
        return [*done, self.failure()]

    def failure(self) -> Result:
        """Only the one that failed."""
        return _job(self.store, "ssf", "busi", f"Out of memory; the last image was {PRIVATE!r}.")


@contextmanager
def desk(report: Report) -> Iterator[Desk]:
    """In folders that are gone afterwards."""
    with TemporaryDirectory() as folder:
        store, out = Path(folder) / "store", Path(folder) / "out"
        store.mkdir()
        out.mkdir()
        yield Desk(report, store, out)


def it_writes_files(report: Report) -> str:
    """Some, all in the folder it was given, each of them named in its answer, one of them of its suffix."""
    with desk(report) as here:
        files = report.write(here.results(), here.out)
        demand(files, "It wrote nothing.")
        found = sorted(file for file in here.out.rglob("*") if file.is_file())
        demand(sorted(files) == found, f"It says it wrote {_names(files)}, there is {_names(found)}.")
        demand(any(file.suffix == report.suffix for file in files), f"None of {_names(files)} ends in {report.suffix}.")
        return _names(files)


def the_store_stays_as_it_was(report: Report) -> str:
    """A report reads; it writes nowhere but into its folder."""
    with desk(report) as here:
        results = here.results()
        before = _contents(here.store)
        report.write(results, here.out)
        demand(_contents(here.store) == before, "It changed the store.")
        stray = [path.name for path in here.store.parent.iterdir() if path not in {here.store, here.out}]
        demand(not stray, f"It wrote {stray[0] if stray else ''} outside of the folder it was given.")
        return "Nothing changed beside its folder."


def written_twice_it_is_the_same(report: Report) -> str:
    """The same results give the same bytes: a published report can be checked."""
    with desk(report) as here:
        results = here.results()
        first = _contents(here.out, report.write(results, here.out))
        second = _contents(here.out, report.write(results, here.out))
        differ = sorted(name for name in first | second if first.get(name) != second.get(name))
        demand(not differ, f"Written again, {differ[0] if differ else ''} differs.")
        return "The same bytes."


def failures_are_no_error(report: Report) -> str:
    """A store with nothing but a failed job, and an empty one."""
    with desk(report) as here:
        report.write([here.failure()], here.out)
        report.write([], here.out)
        return "A failed job alone and no job at all are told."


def no_image_is_named(report: Report) -> str:
    """Image names stay in a job's private file."""
    with desk(report) as here:
        told = [file.name for file in report.write(here.results(), here.out) if PRIVATE.encode() in file.read_bytes()]
        demand(not told, f"{told[0] if told else ''} names an image.")
        return "No name of an image in any file."


def importing_it_needs_no_torch(report: Report) -> str:
    """`peftbench list` and `peftbench report` answer at once."""
    return refuse_torch(type(report).__module__)


RULES: tuple[Rule[Report], ...] = (
    it_writes_files,
    the_store_stays_as_it_was,
    written_twice_it_is_the_same,
    failures_are_no_error,
    no_image_is_named,
    importing_it_needs_no_torch,
)


def check_report(report: Report) -> list[Finding]:
    """Every rule's finding."""
    return list(judge(RULES, report))


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files) or "nothing"


def _contents(folder: Path, files: Sequence[Path] | None = None) -> dict[str, bytes]:
    chosen = folder.rglob("*") if files is None else files
    return {str(file.relative_to(folder)): file.read_bytes() for file in chosen if file.is_file()}


def _job(store: Path, method: str, data: str, reason: str = "") -> Result:
    folder = store / "jobs" / f"{method}_{data}"
    folder.mkdir(parents=True, exist_ok=True)
    record = Record.model_validate(_record(method, data, reason))
    (folder / "record.json").write_text(record.model_dump_json(), encoding="utf-8")
    (folder / "private.json").write_text(f'{{"names": ["{PRIVATE}"]}}', encoding="utf-8")
    if not reason:
        JobFolder(folder).write_predictions(_predictions(len(method) + len(data)))
    return Result(record, folder)


def _predictions(seed: int) -> dict[str, NDArray[Any]]:
    draw, labels = np.random.default_rng(seed), np.arange(30) % 3
    arrays = {f"{part}/{what}": v for part in ("val", "test") for what, v in (("labels", labels), ("groups", labels))}
    logits = (draw.normal(size=(30, 3)) + np.eye(3)[labels]).astype(np.float32)
    return arrays | {f"{part}/{rule}/logits": logits for part in ("val", "test") for rule in RULES_OF_CHOICE}


def _record(method: str, data: str, reason: str) -> dict[str, Any]:
    scores = {"macro_f1": 0.6, "accuracy": 0.6, "auc": None}
    sizes = {"train": 300, "val": 30, "test": 30}
    card = {"title": data, "classes": ["a", "b", "c"], "group_key": "patient", "synthetic": data.startswith("phantom")}
    done = {
        "counts": {"trainable": 0 if method == "linear" else 27_648, "head": 579},
        "choices": {rule: {"step": 40, "val": scores, "test": scores} for rule in RULES_OF_CHOICE},
        "costs": {"seconds": 12.0, "selection_seconds": 0.0, "train_seconds": 10.0, "evaluation_seconds": 1.0}
        | {"images_per_second": 200.0, "peak_memory": 2**28, "delta_bytes": 110_592},
    }
    return {
        "schema_version": SCHEMA,
        "id": f"{method}_{data}",
        "role": "final",
        "status": "failed" if reason else "done",
        "reason": reason,
        "method": {"name": method, "version": 1, "fields": {}, "label": method},
        "data": {"name": data, "fingerprint": "f" * 64, "split": "official", "sizes": sizes, "groups": sizes}
        | {"card": card, "notes": []},
        "backbone": {"name": "mini", "digest": "d" * 64, "random": False, "parameters": 2_700_000}
        | {"preprocessing": {"size": 64}},
        "recipe": {"name": "quick", "lr": 1e-3, "selection": "validation", "steps": 80, "head": "plain"},
        "seed": 0,
        "threads": 1,
        **({} if reason else done),
    }
