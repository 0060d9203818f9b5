"""Finished jobs go to trackers; nothing of it reaches a job, and a tracker that fails never stops a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, EntryPoints
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from peftbench.core import registry as registry_module
from peftbench.core.contract import TrackedJob, Tracker
from peftbench.core.record import Record
from peftbench.core.registry import registry
from peftbench.core.spec import Job
from peftbench.errors import PluginError, RequestError, UnknownNameError
from peftbench.execution.executor import Tick
from peftbench.execution.tracking import Tracking, make_trackers
from peftbench.training.job import run
from tests import studies

PLANTED = "Zyxwora"


@dataclass
class Kept:
    """A tracker that keeps what it receives, or raises."""

    fails: bool = False
    jobs: list[TrackedJob] = field(default_factory=list)
    closed: int = 0

    def track(self, job: TrackedJob) -> None:
        self.jobs.append(job)
        if self.fails:
            raise OSError("server away")

    def close(self) -> None:
        self.closed += 1


@dataclass
class Board:
    """A monitor that keeps its warnings."""

    warnings: list[str] = field(default_factory=list)
    ends: int = 0

    def begin(self, what: str, jobs: Sequence[Job]) -> None:
        pass

    def tick(self, tick: Tick) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def ended(self, job: Job, record: Record) -> None:  # noqa: ARG002 - the contract's
        self.ends += 1

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def finished(home: Path) -> Any:
    """Return a job that has run, and its record."""
    images = home / f"ward of {PLANTED}" / "scans"
    if not images.exists():
        studies.draw(images, images=8)
    (job,) = studies.jobs(studies.small(images, methods=("lora",), steps=4), studies.places(home))
    return job, run(job, studies.places(home))


def track(home: Path, *trackers: Tracker, times: int = 1) -> tuple[Any, Board]:
    """Hand one finished job to trackers."""
    job, record = finished(home)
    board = Board()
    with Tracking(board, {f"tracker {n}": one for n, one in enumerate(trackers)}, home / "runs") as tracking:
        tracking.begin("jobs", [job])
        for _ in range(times):
            tracking.ended(job, record)
    return record, board


def test_a_tracker_receives_settings_curve_scores_and_costs_and_no_name_or_path(tmp_path: Path) -> None:
    kept = Kept()
    record, board = track(tmp_path, kept)
    (job,) = kept.jobs
    assert job.id == record.id
    assert job.parameters["dataset"] == "folder:scans"
    assert job.parameters["method.r"] == record.method.fields["r"]
    assert job.parameters["recipe.optimizer"] == record.recipe["optimiser"]
    assert job.numbers["test/macro_f1"] == record.choices[record.rule].test["macro_f1"]
    assert job.numbers["cost/seconds"] == record.costs.seconds
    assert [row["step"] for row in job.curve] == [1, 2, 3, 4]
    everything = repr(job)
    assert PLANTED not in everything
    assert ".png" not in everything
    assert str(tmp_path) not in everything
    assert (kept.closed, board.ends, board.warnings) == (1, 1, [])


def test_a_tracker_that_raises_is_named_once_and_the_others_go_on(tmp_path: Path) -> None:
    broken, whole = Kept(fails=True), Kept()
    _, board = track(tmp_path, broken, whole, times=3)
    assert (len(broken.jobs), len(whole.jobs), board.ends) == (1, 3, 3)
    (warning,) = board.warnings
    assert warning.startswith("The tracker tracker 0 failed and receives no more jobs; the study goes on (OSError: ")


def test_a_run_with_a_faulty_tracker_ends_as_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty_tracker.py").write_text(
        "class plugin:\n def __init__(self, store): pass\n def track(self, job): raise SystemExit(3)\n"
        " def close(self): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = EntryPoints([EntryPoint("faulty", "faulty_tracker:plugin", "peftbench.trackers")])
    monkeypatch.setattr(registry_module, "_points", lambda group, _path: points.select(group=group))
    images = studies.draw(tmp_path / "images", images=8)
    words = ["run", "--methods", "lora", "--datasets", f"folder:{images}", "--recipe", "quick", *studies.SHORT]
    left = {}
    for store in ("plain", "tracked"):
        more = ["--tracker", "faulty"] if store == "tracked" else []
        assert studies.call([*words, "--store", str(tmp_path / store), *more], monkeypatch) == 0
        left[store] = {f.name: studies.left_by(f) for f in (tmp_path / store / "jobs").iterdir()}
    assert left["plain"] == left["tracked"]
    assert capsys.readouterr().err.count("The tracker faulty failed") == 1


def test_an_unknown_tracker_and_a_missing_extra_are_refused(tmp_path: Path) -> None:
    assert {"tensorboard", "mlflow"} <= set(registry("trackers").names())
    with pytest.raises(UnknownNameError, match="No tracker is called 'wandb'"):
        make_trackers(["wandb"], tmp_path)
    for name in ("tensorboard", "mlflow"):
        if find_spec(name) is None:
            with pytest.raises(RequestError, match=rf"needs {name}; install it: pip install 'peftbench\[{name}\]'"):
                make_trackers([name], tmp_path)


def test_a_plugin_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_store: Path) -> None:
        raise ValueError("no store")

    monkeypatch.setattr(registry("trackers").__class__, "get", lambda *_: refuse)
    with pytest.raises(PluginError, match=r"The tracker 'mlflow' cannot be made: ValueError: no store"):
        make_trackers(["mlflow"], tmp_path)


# --- the real programs -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the other program
def test_tensorboard_reads_curve_hyperparameters_and_scores(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    metadata = pytest.importorskip("tensorboard.plugins.hparams.metadata")
    messages = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    record, board = track(tmp_path, *make_trackers(["tensorboard"], tmp_path / "runs").values(), times=2)
    assert board.warnings == []
    events = reading.EventAccumulator(str(tmp_path / "runs" / "tensorboard" / record.id)).Reload()
    assert [one.step for one in events.Scalars("curve/val_loss")] == [1, 2, 3, 4]
    (score,) = events.Scalars("test/macro_f1")
    assert score.value == pytest.approx(record.choices[record.rule].test["macro_f1"])
    found = messages.HParamsPluginData.FromString(
        events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    assert found.session_start_info.hparams["method"].string_value == "lora"
    for file in (tmp_path / "runs" / "tensorboard").rglob("*"):
        assert file.is_dir() or PLANTED.encode() not in file.read_bytes()


@pytest.mark.filterwarnings("ignore")  # of the other program
def test_mlflow_reads_parameters_curve_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    tracking = pytest.importorskip("mlflow.tracking")
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    record, board = track(tmp_path, *make_trackers(["mlflow"], tmp_path / "runs").values())
    assert board.warnings == []
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("peftbench")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.tags["peftbench.job"] == record.id
    assert found.data.params["method.r"] == str(record.method.fields["r"])
    assert found.data.metrics["test/macro_f1"] == pytest.approx(record.choices[record.rule].test["macro_f1"])
    assert [one.step for one in client.get_metric_history(found.info.run_id, "curve/val_loss")] == [1, 2, 3, 4]
    assert PLANTED not in json.dumps(found.to_dictionary())


@pytest.mark.filterwarnings("ignore")  # of the other program
def test_an_mlflow_server_that_is_away_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    _, board = track(tmp_path, *make_trackers(["mlflow"], tmp_path / "runs").values(), times=2)
    (warning,) = board.warnings
    assert warning.startswith("The tracker tracker 0 failed")
