"""A store that version 0.1.0 wrote, three jobs done and one interrupted, is used by this version as it is.

`store_0_1` was written by commit 79a6214; its images, the drawn phantom_ct at 64 px, are drawn again here.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from peftbench.results.frame import frame
from peftbench.results.store import Store
from peftbench.training.checkpoint import Checkpoint
from tests import studies

OLD = Path(__file__).parent / "store_0_1"
DONE = {"8fa4c24740b54fee": "lora", "6e67a691f559ff93": "vera", "2ef0384ac87ef697": "shpeft"}
INTERRUPTED = "c59fb352fa923b8d"
STUDY = (
    "--methods=lora[r=1],vera,shpeft,adaptformer[bottleneck=1]",
    *("--datasets=phantom_ct", "--ratios=0.01%", "--backbone=mini", "--no-baselines", "--recipe=standard"),
    *("--steps=4", "--batch=8", "--evaluations=2", "--lr=0.001", "--tune=0", "--seeds=0", "--precision=fp32"),
    "--jobs=1",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    shutil.copytree(OLD, folder / "store")
    return folder


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def first_rows(home: Path) -> list[dict[str, float]]:
    """The learning curve as far as version 0.1.0 came with the interrupted job."""
    begun = Checkpoint(Store(home / "store").job(INTERRUPTED)).read()
    assert begun is not None
    return begun[0].curve


@pytest.fixture(scope="module")
def resumed(home: Path, first_rows: list[dict[str, float]], patch: pytest.MonkeyPatch) -> Path:
    """The store after `run` of the same study."""
    assert first_rows
    assert run(home, patch) == 0
    return home / "store"


def run(home: Path, patch: pytest.MonkeyPatch) -> int:
    places = (f"--store={home / 'store'}", f"--cache={home / 'cache'}", f"--data={home / 'data'}")
    return studies.call(["run", *STUDY, *places], patch)


def test_its_jobs_have_their_states_and_load_as_a_table(tmp_path: Path) -> None:
    store = Store(shutil.copytree(OLD, tmp_path / "store"))
    assert {job.id: job.state() for job in store.jobs()} == dict.fromkeys(DONE, "done") | {INTERRUPTED: "interrupted"}
    found = frame(store.results())
    assert dict(zip(found["id"], found["label"], strict=True)) == DONE
    assert found["macro_f1_low"].notna().all()


def test_it_is_reported(home: Path, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    assert studies.call(["report", str(home / "store"), "--out", str(tmp_path)], patch) == 0
    text = (tmp_path / "tables.md").read_text()
    assert all(f"| {method} " in text for method in DONE.values())


def test_the_interrupted_job_is_resumed_from_its_checkpoint(resumed: Path, first_rows: list[dict[str, float]]) -> None:
    job = Store(resumed).job(INTERRUPTED)
    assert job.state() == "done"
    with job.curve_file.open() as text:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(text)]
    assert rows[: len(first_rows)] == first_rows
    assert rows[-1]["step"] == 4


def test_a_second_run_redoes_nothing(resumed: Path, home: Path, patch: pytest.MonkeyPatch) -> None:
    store = Store(resumed)
    before = {job.id: job.record_file.stat().st_mtime_ns for job in store.jobs()}
    assert set(before) == {*DONE, INTERRUPTED}
    assert run(home, patch) == 0
    assert {job.id: job.record_file.stat().st_mtime_ns for job in store.jobs()} == before
    for job in DONE:  # nor did the first run
        assert store.job(job).record_file.read_bytes() == Store(OLD).job(job).record_file.read_bytes()


def test_its_deltas_predict_and_merge(resumed: Path, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(image)
    for job in (*DONE, INTERRUPTED):
        out = tmp_path / f"{job}.json"
        words = ["predict", job, str(image), "--store", str(resumed), "--json", "--out", str(out), "--device=cpu"]
        assert studies.call(words, patch) == 0
        assert json.loads(out.read_text())
    merged = tmp_path / "merged.safetensors"
    assert studies.call(["merge", "8fa4c24740b54fee", "--out", str(merged), "--store", str(resumed)], patch) == 0
    assert all(torch.isfinite(tensor).all() for tensor in load_file(merged).values())
