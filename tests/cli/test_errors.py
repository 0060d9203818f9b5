"""Sentences about mistakes on the command line, and terminals with unusual encodings."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftbench.cli import errors
from tests import studies


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "list",
            "Missing argument 'kind': methods, datasets, backbones, metrics, reports, executors, trackers, recipes or",
        ),
        (
            "merge abc",
            "Missing option '--out' / '-o': The file to write; with --to huggingface a folder. See",
        ),
        ("report runs --per patient", "Invalid value for '--per': 'patient' is not one of 'dataset', 'method'. See"),
        ("runn", "No such command 'runn'. Did you mean 'run'? See `peftbench --help`."),
        ("run a.toml b.toml", "Got unexpected extra argument(s) (b.toml). See `peftbench run --help`."),
        ("run --methods lora --ratios 10000000000000", "The ratio '10000000000000' is out of range"),
        ("show backbone timm", "write timm:NAME"),
        ("show dataset phantom_ct --out taken", "--out taken: the file's name must end in .png"),
        ("measure --methods linear --out taken", "--out taken is a folder; name a file."),
    ],
)
def test_a_mistake_is_reported_with_the_fix(
    command: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "taken").mkdir()
    assert studies.call(command.split(), monkeypatch) == 2
    shown = capsys.readouterr().err.replace("KIND", "kind")  # as an older typer has it
    assert message in shown
    assert shown.count("\n") == 1


def test_several_values_follow_one_option_or_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    shown = []
    for methods in ("--methods lora[r=4],ssf", "--methods lora[r=4] --methods=ssf"):
        words = [*methods.split(), "--datasets", "phantom_ct", "--seeds", "0", "--backbone", "mini", "--no-baselines"]
        assert studies.call(["plan", *words, "--json"], monkeypatch) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert [row["method"] for row in shown[0]] == ["lora[r=4]", "ssf"]
    assert shown[0] == shown[1]


def test_a_terminal_that_knows_ascii_only_still_gets_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    errors.spell_out()
    sys.stdout.write("Rücklé")
    assert written.getvalue() == b"R\\xfcckl\\xe9"


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """`peftbench list methods | head -1`: rich meets a closed pipe."""
    code = "import sys; from peftbench.cli.app import main; sys.argv = ['peftbench', 'list', 'methods']; main()"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


STUDY = """
import sys
from peftbench.cli import app, run
run.run_study = lambda *_, **__: print("x" * 100_000, flush=True)
sys.argv = ["peftbench", "run"]
app.main()
"""


def test_a_study_whose_reader_went_away_is_not_done(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", STUDY], cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        b"peftbench: stdout was closed before the study ended; run the same command again to resume."
    ]


def test_a_broken_pipe_inside_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As when a helper process was killed: stdout is still open."""

    def lost(*_: object, **__: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("peftbench.cli.run.run_study", lost)
    assert studies.call(["run"], monkeypatch) == 2
    assert capsys.readouterr().err == "peftbench: The system: Broken pipe.\n"


def test_names_from_old_archives_are_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of image files; a class is written into records and tables, and so must be letters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    images = studies.draw(tmp_path / "images", 8)
    try:
        os.rename(images / "dots/00.png", os.fsencode(images) + b"/dots/M\xfcller.png")  # noqa: PTH104 - of bytes
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    asked = [
        *["run", "--methods", "linear", "--recipe", "quick", "--train-share", "60%", "--datasets"],
        "folder:images",
    ]
    assert studies.call([*asked, *studies.SHORT], monkeypatch) == 0
    (job,) = (tmp_path / "runs/jobs").iterdir()
    assert studies.call(["predict", job.name, "images", "--out", "said.csv"], monkeypatch) == 0
    assert b"images/dots/M\xfcller.png" in (tmp_path / "said.csv").read_bytes()
    os.rename(images / "rows", os.fsencode(images) + b"/\xe4")  # noqa: PTH104
    capsys.readouterr()
    assert studies.call([*asked, *studies.SHORT], monkeypatch) == 2
    assert "The folder name '\\udce4' is not valid UTF-8; rename that folder." in capsys.readouterr().err
