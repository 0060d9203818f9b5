"""The command line: what it answers, and one clear sentence for every mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from peftbench.cli.app import app
from peftbench.cli.show import facts as known
from peftbench.core.registry import registry
from peftbench.core.spec import Study
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe
from peftbench.profiling import hardware
from peftbench.storage import files
from tests import records, studies

Peftbench = Callable[..., int]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.draw(tmp_path_factory.mktemp("cli") / "images", 10)


@pytest.fixture
def here(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with images, and everything else that a mistake may name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(images.parent / "cache"))
    monkeypatch.setenv("PEFTBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "images").symlink_to(images)
    return tmp_path


def peftbench(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    return studies.call(arguments, monkeypatch)


# --- mistakes --------------------------------------------------------------------------------------------------------


def nothing(_: Path) -> None:
    """The mistake lies in the words alone."""


def text_as_weights(here: Path) -> None:
    (here / "w.safetensors").write_text("these are no weights")


def pickle_as_weights(here: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), here / "w.pt")  # a module, not its tensors


def weights_of_another_network(here: Path) -> None:
    save_file({"cls_token": torch.zeros(1, 1, 8), "pos_embed": torch.zeros(1, 65, 8)}, here / "w.safetensors")


def broken_image(here: Path) -> None:
    studies.draw(here / "broken", 8)
    (here / "broken" / "rows" / "00.png").write_bytes(b"no image")


def class_missing_in_train(here: Path) -> None:
    studies.draw(here / "parts" / "train", 3)
    studies.draw(here / "parts" / "test", 3, seed=1)
    for file in (here / "parts" / "train" / "dots").iterdir():
        file.unlink()


def store_that_is_a_file(here: Path) -> None:
    (here / "taken").touch()


def damaged_record(here: Path) -> None:
    (here / "hurt" / "jobs" / "abc").mkdir(parents=True)
    (here / "hurt" / "jobs" / "abc" / "record.json").write_text("{")


def empty_store(here: Path) -> None:
    (here / "empty" / "jobs").mkdir(parents=True)


def finished_store(here: Path) -> None:
    records.Fake().write(here / "runs")
    (here / "taken").touch()


def wrong_study(here: Path) -> None:
    (here / "study.toml").write_text('methods = ["lora"]\nlearning_rate = 1e-3\n')


RUN = "run --backbone mini --no-baselines --recipe quick"
LORA = f"{RUN} --datasets images --methods lora"
MISTAKES: list[tuple[str, str, Callable[[Path], None]]] = [  # the command, what the sentence names, what lies there
    (f"{RUN} --datasets images --methods lorra", "'lorra'. Did you mean lora", nothing),
    (f"{RUN} --datasets images --methods lora[", "'lora['", nothing),
    (f"{RUN} --datasets images --methods lora[r]", "'r' has no value", nothing),
    (f"{RUN} --datasets images --methods lora[rank=4]", "lora has no field 'rank'; its fields are r, alpha", nothing),
    (f"{RUN} --datasets images --methods lora[r=four]", "r must be a whole number, got four", nothing),
    (f"{RUN} --datasets images --methods lora[r=0]", "lora: r must be at least 1, got 0", nothing),
    (f"{RUN} --datasets images --methods lora[sites=head]", "got head", nothing),
    (f"{RUN} --datasets images --methods bitfit[r=1]", "bitfit has no field 'r'; it has no fields", nothing),
    (f"{RUN} --datasets images --methods shpeft[ratio=2]", "shpeft: ratio must be at most 1, got 2", nothing),
    (f"{RUN} --datasets images --methods shpeft[td=none,ta=none]", "td and ta", nothing),
    (f"{RUN} --datasets buzi --methods lora", "'buzi'. Did you mean busi", nothing),
    (f"{RUN} --datasets busi --methods lora", "busi does not exist", nothing),
    (f"{RUN} --datasets folder:nowhere --methods lora", "nowhere is not a folder", nothing),
    (f"{RUN} --datasets folder --methods lora", "write folder:PATH", nothing),
    (f"{RUN} --datasets ./broken --methods lora", "Cannot decode 1 image: rows/00.png", broken_image),
    (f"{RUN} --datasets ./parts --methods lora", "dots", class_missing_in_train),
    ("run --backbone minni --datasets ./images", "'minni'. Did you mean mini", nothing),
    ("run --backbone mini[layers=8] --datasets ./images", "mini has no field 'layers'", nothing),
    ("run --backbone timm --datasets ./images", "timm", nothing),
    ("run --backbone timm:resnet18@random --datasets ./images", "resnet18", nothing),
    (f"{LORA} --weights none.safetensors", "--weights: none.safetensors does not exist", nothing),
    (f"{LORA} --weights w.safetensors", "w.safetensors is not a file of weights but holds text", text_as_weights),
    (f"{LORA} --weights w.pt", "w.pt is refused", pickle_as_weights),
    (f"{LORA} --weights w.safetensors", "w.safetensors is for another network", weights_of_another_network),
    (f"{LORA} --backbone mini@random --weights w.pt", "--weights cannot be used with --backbone mini@random", nothing),
    (f"{LORA} --image-size 60", "--image-size must be a multiple of the patch size 8 px, got 60", nothing),
    (f"{LORA} --image-size -8", "--image-size must be above 0, got -8", nothing),
    (f"{LORA} --recipe qiuck", "'qiuck'", nothing),
    (f"{LORA} --ratios 1%,x", "'x' as a number", nothing),
    (f"{LORA} --ratios 150%", "The ratio '150%' is out of range", nothing),
    (f"{LORA} --ratios 1.5", "The ratio '1.5' is out of range", nothing),
    (f"{LORA} --ratios 0", "The ratio '0' is out of range", nothing),
    (f"{LORA} --ratios nan", "'nan' as a number", nothing),
    (f"{LORA} --seeds x", "--seeds must be a whole number, got x", nothing),
    (f"{LORA} --seeds -1", "--seeds", nothing),
    (f"{LORA} --seeds ,", "--seeds", nothing),
    (f"{LORA} --steps 0", "--steps must be above 0, got 0", nothing),
    (f"{LORA} --steps many", "'--steps'", nothing),
    (f"{LORA} --batch -4", "--batch must be above 0, got -4", nothing),
    (f"{LORA} --evaluations 0", "--evaluations must be above 0, got 0", nothing),
    (f"{LORA} --lr -1", "--lr must be above 0, got -1", nothing),
    (f"{LORA} --lr nan", "--lr must be a finite number, got nan", nothing),
    (f"{LORA} --threads 0", "--threads must be above 0, got 0", nothing),
    (f"{LORA} --jobs -1", "'--jobs'", nothing),
    (f"{LORA} --tune 1", "--tune must be 0 or at least 2, got 1", nothing),
    (f"{LORA} --tune 4 --lr 0.1", "--tune and --lr exclude each other", nothing),
    (f"{LORA} --precision fp8", "--precision must be 'auto', 'fp32' or 'bf16', got fp8", nothing),
    (f"{LORA} --device tpu", "--device must be auto, cpu or cuda, got tpu", nothing),
    (f"{LORA} --device cuda", "--device cuda: torch finds no CUDA GPU", nothing),
    (f"{LORA} --store taken", "taken", store_that_is_a_file),
    (f"{LORA} --learning-rate 1", "--learning-rate", nothing),
    ("run nothing.toml", "nothing.toml", nothing),
    ("run study.toml", "study.toml has no field 'learning_rate'", wrong_study),
    ("plan --methods lorra", "'lorra'", nothing),
    ("report nowhere", "nowhere", nothing),
    ("report empty", "empty", empty_store),
    ("report hurt", "abc/record.json cannot be read", damaged_record),
    ("report runs --format word", "'word'", finished_store),
    ("report runs --format csv --out taken", "taken", finished_store),
    ("status nowhere", "nowhere", nothing),
    ("list method", "'method'. Did you mean methods", nothing),
    ("show methods lora", "'methods'. Did you mean method", nothing),
    ("show method lorra", "Did you mean lora", nothing),
    ("show dataset buzi", "Did you mean busi", nothing),
    ("show backbone minni", "Did you mean mini", nothing),
    ("show recipe qiuck", "Did you mean quick", nothing),
    ("runn", "'runn'", nothing),
    ("show method", "'name'", nothing),
    ("list", "'kind': methods, datasets", nothing),
    ("run --methods , --datasets phantom_xray", "--methods must name at least one value, got ','", nothing),
    (
        "run --datasets phantom_xray --train-share 101%",
        "--train-share must be a share above 0% and at most 100%",
        nothing,
    ),
    (
        "run --methods linear --datasets phantom_xray --image-size 1000000",
        "--image-size must be at most 4096 px",
        nothing,
    ),
    ("run --graph", "--graph needs a GPU", nothing),
    ("measure --methods linear --graph", "--graph needs a GPU", nothing),
    ("run --seeds 0-4", "--seeds must be", nothing),
    ("report runs --format ,", "--format", finished_store),
]


@pytest.mark.parametrize(("command", "names", "prepare"), MISTAKES, ids=[command for command, *_ in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(
    command: str,
    names: str,
    prepare: Callable[[Path], None],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "auto_device", lambda: "cpu")
    prepare(here)
    code = peftbench(command.split(), monkeypatch)
    shown = capsys.readouterr().err
    assert code == 2, shown
    assert re.fullmatch(r"peftbench: [^\n]+\n", shown)
    assert names in shown.replace("NAME", "name").replace("KIND", "kind")  # as an older typer has it
    assert "Traceback" not in shown
    assert list(here.glob("runs/jobs/*/job.json")) == []  # nothing was begun


def test_debug_shows_where_it_happened(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert peftbench(["--debug", "show", "method", "lorra"], monkeypatch) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.splitlines()[-1].startswith("peftbench: No method is called 'lorra'.")


def test_a_full_disk_is_no_traceback(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(here / "runs"))

    monkeypatch.setattr("peftbench.cli.report.write_report", full)
    assert peftbench(["report"], monkeypatch) == 2
    assert capsys.readouterr().err == f"peftbench: {here / 'runs'}: No space left on device.\n"


def test_a_stream_that_ends_early_is_no_interrupt(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object, **__: object) -> None:
        raise EOFError("no data left")

    finished_store(here)
    monkeypatch.setattr("peftbench.cli.report.write_report", end)
    assert peftbench(["report"], monkeypatch) == 2
    assert capsys.readouterr().err.strip() == (
        "peftbench: A file or process ended too early (no data left). Run the same command again."
    )


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_report_on_a_full_disk_names_its_file_and_keeps_the_former_one(
    error: int, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_store(here)
    asked = ["report", "--format", "csv,markdown", "--out", "reports"]
    assert peftbench(asked, monkeypatch) == 0
    former = {file: file.read_bytes() for file in Path("reports").iterdir()}
    records.Fake(method="bitfit").write(here / "runs")

    def full(_number: int, _size: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files, "reserve", full)
    capsys.readouterr()
    assert peftbench(asked, monkeypatch) == 2
    assert capsys.readouterr().err == f"peftbench: reports/results.csv: {os.strerror(error)}.\n"
    assert {file: file.read_bytes() for file in Path("reports").iterdir()} == former


@pytest.mark.parametrize("limit", [10, 1000, 20_000])  # bytes: of a table, of a longer one, of a figure
def test_a_report_that_may_not_write_large_files_leaves_whole_ones_only(
    limit: int, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records.study(here / "more", ("busi",), (0,))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        assert peftbench(["report", "more", "--out", "reports"], monkeypatch) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"peftbench: reports/[\w./]+: File too large\.", line)
    assert peftbench(["report", "more", "--out", "whole"], monkeypatch) == 0
    for file in (file for file in Path("reports").rglob("*") if file.is_file()):
        assert file.read_bytes() == (Path("whole") / file.relative_to("reports")).read_bytes()


# --- a study, from the first command to the last ---------------------------------------------------------------------


def test_a_study_runs_reports_and_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["run", "--datasets", "./images", "--methods", "linear,lora", "--tune", "2", *studies.SHORT]
    assert peftbench([*asked, "--recipe", "quick"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "[4/4]" in printed  # trials
    assert "2 of 2 jobs done" in printed
    assert "Recommendation" not in printed  # one trained method beside a baseline
    assert "Next: peftbench report runs" in printed
    records = studies.records(here / "runs")
    assert sorted(record.role for record in records.values()) == ["final"] * 2 + ["trial"] * 4
    for record in records.values():
        if record.tuning:
            assert record.recipe["lr"] == record.tuning.chosen
            assert [records[trial].recipe["lr"] for trial in record.tuning.trials] == record.tuning.grid == [1e-4, 1e-3]
            scores = [records[trial].choices["validation"].val["macro_f1"] for trial in record.tuning.trials]
            assert scores == record.tuning.scores

    before = {file: file.stat().st_mtime_ns for file in here.glob("runs/jobs/*/record.json")}
    assert peftbench([*asked, "--recipe", "quick"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 jobs were done before." in printed
    assert {file: file.stat().st_mtime_ns for file in here.glob("runs/jobs/*/record.json")} == before

    assert peftbench(["report", "--format", "md,csv", "--out", "out"], monkeypatch) == 0
    written = capsys.readouterr().out.split()
    assert {Path(name).suffix for name in written} == {".md", ".csv"}
    assert all((here / name).stat().st_size for name in written)
    assert peftbench(["status"], monkeypatch) == 0
    given = capsys.readouterr().out
    assert given.split()[:2] == ["6", "done"]
    assert "4 of them are trials" in given


@pytest.mark.usefixtures("here")
def test_a_failed_job_is_shown_does_not_stop_the_study_and_is_tried_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["run", "--datasets", "./images", "--methods", "bitfit,linear", "--recipe", "quick", *studies.SHORT]
    plan = registry("methods").get("bitfit").plan

    def fail(method: Method, vit: nn.Module, probe: Probe) -> Plan:
        if vit.get_parameter("cls_token").is_meta:  # only counted
            return cast("Plan", plan(method, vit, probe))
        raise MemoryError("nothing left")

    with monkeypatch.context() as broken:
        broken.setattr(registry("methods").get("bitfit"), "plan", fail)
        assert peftbench(asked, broken) == 1
    printed = capsys.readouterr().out
    assert "FAILED bitfit on ./images: Out of memory, also with every batch in 4 pieces (nothing left)" in printed
    assert "1 of 2 jobs done" in printed
    assert peftbench(["status", "--json"], monkeypatch) == 0
    assert sorted(json.loads(capsys.readouterr().out).values()) == ["done", "failed"]

    assert peftbench(asked, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 jobs were done before." in printed
    assert "2 of 2 jobs done" in printed


def test_a_study_file_gives_the_jobs_that_its_flags_give(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Study] = []

    def run_study(study: Study, *_: object, **__: object) -> int:
        asked.append(study)
        return 0

    monkeypatch.setattr("peftbench.cli.run.run_study", run_study)
    (here / "study.toml").write_text(
        'methods = ["lora[r=4]"]\ndatasets = ["busi"]\nratios = ["1%", "5k"]\nseeds = [0, 1]\ntune = 2\n'
        'backbone = "mini"\nrecipe = "standard"\nbaselines = false\nsteps = 5\nprecision = "fp32"\n'
    )
    flags = "--methods lora[r=4] --datasets busi --ratios 1%,5k --seeds 0,1 --tune 2 --backbone mini --recipe standard"
    assert peftbench(["run", "study.toml"], monkeypatch) == 0
    assert peftbench(["run", *flags.split(), "--no-baselines", "--steps", "5", "--precision", "fp32"], monkeypatch) == 0
    assert peftbench(["run", "study.toml", "--steps", "6"], monkeypatch) == 0
    assert asked[0] == asked[1]
    assert (asked[2].steps, asked[2].methods) == (6, asked[0].methods)


# --- list, show, plan, status ----------------------------------------------------------------------------------------


def answer(arguments: Sequence[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    assert peftbench(arguments, monkeypatch) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("methods", "shpeft"),
        ("datasets", "busi"),
        ("backbones", "clip_vit_b16"),
        ("metrics", "macro_f1"),
        ("reports", "latex"),
        ("recipes", "paper"),
    ],
)
def test_list_names_what_there_is(
    kind: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in json.loads(answer(["list", kind, "--json"], capsys, monkeypatch))
    assert name in answer(["list", kind], capsys, monkeypatch)


def test_list_prints_brackets_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "timm:NAME[depth=8" in answer(["list", "backbones"], capsys, monkeypatch)


@pytest.mark.parametrize(
    ("kind", "name", "key", "fact"),
    [
        ("method", "lora", "counts", "294,912 of 85,799,424"),
        ("method", "majority", "counts", "0 of"),
        ("backbone", "mini", "licence", "research"),
        ("backbone", "clip_vit_b16", "parameters", "85,799,424"),
        ("dataset", "busi", "how_to_get", "busi"),
        ("dataset", "folder", "use", "working folder"),
        ("recipe", "paper", "steps", "40000"),
    ],
)
@pytest.mark.usefixtures("here")
def test_show_prints_everything_about_one(
    kind: str, name: str, key: str, fact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads(answer(["show", kind, name, "--json"], capsys, monkeypatch))
    assert fact in str(facts[key])
    assert key in answer(["show", kind, name], capsys, monkeypatch)


def test_a_phantom_is_marked_synthetic() -> None:
    assert known("dataset", "phantom_oct")["synthetic"] is True


def test_plan_needs_neither_weights_nor_data(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "plan --recipe paper --seeds 0 --backbone clip_vit_b16 --datasets busi --methods full,lora,shpeft"
    rows = json.loads(answer([*asked.split(), "--json"], capsys, monkeypatch))
    assert [row["trainable"] for row in rows if row["method"] in {"full", "lora"}] == [85_799_424, 294_912]
    assert "85,799,424" in answer(asked.split(), capsys, monkeypatch)
    assert list(here.glob("runs")) == []


def test_status_counts_jobs_and_states_why_some_failed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = [
        records.Fake(seed=0),
        records.Fake(seed=1),
        records.Fake(method="full", reason="Out of memory: all of it."),
    ]
    for fake in fakes:
        fake.write(here / "runs")
    (here / "runs" / "jobs" / "begun").mkdir()
    printed = answer(["status"], capsys, monkeypatch)
    assert [line.split()[:2] for line in printed.splitlines()[:3]] == [
        ["2", "done"],
        ["1", "failed"],
        ["1", "interrupted"],
    ]
    assert printed.splitlines()[3] == f"{fakes[2].id} full: Out of memory: all of it."
    listed = [line.split() for line in printed.splitlines()[5:]]  # the ids that predict and merge want
    assert {tuple(words[:2]) for words in listed} >= {(fakes[0].id, "done"), ("begun", "interrupted")}
    assert json.loads(answer(["status", "--json"], capsys, monkeypatch))["begun"] == "interrupted"


def test_one_damaged_job_blocks_neither_status_nor_report(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, unreadable, changed = (records.Fake(seed=seed).write(here / "runs") for seed in range(3))
    (unreadable.folder / "record.json").write_text("{")
    (changed.folder / "predictions.npz").write_bytes(b"")
    printed = answer(["status"], capsys, monkeypatch)
    assert [line.split() for line in printed.splitlines()[:2]] == [["1", "damaged"], ["2", "done"]]
    assert f"jobs/{unreadable.record.id}/record.json cannot be read" in printed
    assert peftbench(["report", "--format", "md", "--out", "out"], monkeypatch) == 0
    shown = capsys.readouterr().err.splitlines()
    assert f"jobs/{unreadable.record.id}/record.json cannot be read" in shown[0]
    assert f"jobs/{changed.record.id} is shown as damaged: predictions.npz cannot be read (EOFError)" in shown[1]
    text = (here / "out" / "tables.md").read_text()
    assert "1 of 2 seeds damaged" in text
    assert good.record.label in text


def test_an_anonymous_report_names_no_data_set(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.Fake(dataset="folder:/home/dr_x/mine").write(here / "runs")
    assert peftbench(["report", "--out", "named"], monkeypatch) == 0
    assert peftbench(["report", "--anonymous", "--out", "out"], monkeypatch) == 0
    named, hidden = (
        {f.name: f.read_bytes() for f in (here / name).rglob("*") if f.is_file()} for name in ("named", "out")
    )
    assert not [name for name, content in (named | hidden).items() if b"dr_x" in content]
    assert b"folder:mine" in named["tables.md"]
    assert not [name for name, content in hidden.items() if b"mine" in content]


def test_help_names_every_verb_and_no_arguments_print_help() -> None:
    printed = CliRunner().invoke(app, ["--help"]).output
    assert all(verb in printed for verb in ("run", "plan", "report", "status", "list", "show"))
    done = subprocess.run([sys.executable, "-m", "peftbench"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:1] == ["Usage:"]
