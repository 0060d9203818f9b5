"""check_report: writes into its folder only, reproducibly, with failed jobs and none, on a small made-up study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftbench.core.constants import SELECTION_RULES
from peftbench.core.contract import Report, Result
from peftbench.core.record import SCHEMA, Record
from peftbench.results.store import JobFolder
from peftbench.testing.findings import Finding, Rule, listed, refuse_torch, require, run_rules

PRIVATE = "patient_0017.png"  # an image's name, in a job's private file and in the reason of a failure


@dataclass(frozen=True)
class ReportFixture:
    """A report, a store of made-up jobs and a folder to write into."""

    report: Report
    store: Path
    out: Path

    def results(self) -> list[Result]:
        """Return jobs of two methods on two data sets, and one that failed."""
        done = [_job(self.store, method, data) for method in ("linear", "lora") for data in ("busi", "phantom_ct")]
        return [*done, self.failure()]

    def failure(self) -> Result:
        """Return the job that failed."""
        return _job(self.store, "ssf", "busi", f"Out of memory; the last image was {PRIVATE!r}.")


@contextmanager
def report_fixture(report: Report) -> Iterator[ReportFixture]:
    """Yield a fixture in temporary folders."""
    with TemporaryDirectory() as folder:
        store, out = Path(folder) / "store", Path(folder) / "out"
        store.mkdir()
        out.mkdir()
        yield ReportFixture(report, store, out)


def it_writes_files(report: Report) -> str:
    """It writes files into the given folder only, returns all their paths, and one has its suffix."""
    with report_fixture(report) as here:
        files = report.write(here.results(), here.out)
        require(files, "write() must write a file.")
        found = sorted(file for file in here.out.rglob("*") if file.is_file())
        require(
            sorted(files) == found,
            f"write() must return the files that it wrote, got {_names(files)} for {_names(found)}.",
        )
        require(
            any(file.suffix == report.suffix for file in files), f"One of {_names(files)} must end in {report.suffix}."
        )
        return _names(files)


def the_store_stays_as_it_was(report: Report) -> str:
    """It changes nothing in the store and writes nothing outside its folder."""
    with report_fixture(report) as here:
        results = here.results()
        before = _contents(here.store)
        report.write(results, here.out)
        require(_contents(here.store) == before, "write() must not change the store.")
        stray = [path.name for path in here.store.parent.iterdir() if path not in {here.store, here.out}]
        require(not stray, f"write() must not write {listed(stray)} outside the given folder.")
        return "Nothing changed outside its folder."


def written_twice_it_is_the_same(report: Report) -> str:
    """The same results give the same bytes; of a PDF, whose objects may be in another order, the same size."""
    with report_fixture(report) as here:
        results = here.results()
        first = _comparable(_contents(here.out, report.write(results, here.out)))
        second = _comparable(_contents(here.out, report.write(results, here.out)))
        differ = sorted(name for name in first | second if first.get(name) != second.get(name))
        require(not differ, f"Written twice, {listed(differ)} must be equal.")
        return "The same bytes."


def failures_are_no_error(report: Report) -> str:
    """A store with only a failed job, and an empty one, can be reported."""
    with report_fixture(report) as here:
        report.write([here.failure()], here.out)
        report.write([], here.out)
        return "A failed job alone, and no job."


def no_image_is_named(report: Report) -> str:
    """No file of the report holds an image name."""
    with report_fixture(report) as here:
        found = [file.name for file in report.write(here.results(), here.out) if PRIVATE.encode() in file.read_bytes()]
        require(not found, f"{listed(found)} must not hold an image name.")
        return "No image name in any file."


def importing_it_needs_no_torch(report: Report) -> str:
    """Importing the module does not import torch, so that `peftbench report` starts fast."""
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
    """Return every rule's finding."""
    return list(run_rules(RULES, report))


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files) or "nothing"


def _contents(folder: Path, files: Sequence[Path] | None = None) -> dict[str, bytes]:
    chosen = folder.rglob("*") if files is None else files
    return {str(file.relative_to(folder)): file.read_bytes() for file in chosen if file.is_file()}


def _comparable(contents: Mapping[str, bytes]) -> dict[str, bytes | int]:
    return {name: len(content) if name.endswith(".pdf") else content for name, content in contents.items()}


def _job(store: Path, method: str, data: str, reason: str = "") -> Result:
    folder = store / "jobs" / f"{method}_{data}"
    folder.mkdir(parents=True, exist_ok=True)
    record = Record.model_validate(_record(method, data, reason))
    job = JobFolder(folder)
    job.record_file.write_text(record.model_dump_json(), encoding="utf-8")
    job.write_private({"names": [PRIVATE]})
    if not reason:
        job.write_predictions(_predictions(len(method) + len(data)))
    return Result(record, folder)


def _predictions(seed: int) -> dict[str, NDArray[Any]]:
    draw, labels = np.random.default_rng(seed), np.arange(30) % 3
    arrays = {f"{part}/{what}": v for part in ("val", "test") for what, v in (("labels", labels), ("groups", labels))}
    logits = (draw.normal(size=(30, 3)) + np.eye(3)[labels]).astype(np.float32)
    return arrays | {f"{part}/{rule}/logits": logits for part in ("val", "test") for rule in SELECTION_RULES}


def _record(method: str, data: str, reason: str) -> dict[str, Any]:
    scores = {"macro_f1": 0.6, "accuracy": 0.6, "auc": None}
    sizes = {"train": 300, "val": 30, "test": 30}
    card = {"title": data, "classes": ["a", "b", "c"], "group_key": "patient", "synthetic": data.startswith("phantom")}
    done = {
        "counts": {"trainable": 0 if method == "linear" else 27_648, "head": 579},
        "choices": {rule: {"step": 40, "val": scores, "test": scores} for rule in SELECTION_RULES},
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
