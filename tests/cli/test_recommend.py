"""`peftbench recommend` prints the sentence, the costs, and commands that can be pasted."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from peftbench.core.contract import Result
from peftbench.results.store import JobFolder
from tests import studies
from tests.records import Fake


def with_model(result: Result) -> None:
    """Give a faked job a file in the place of its trained weights."""
    (result.folder / "delta.json").write_text("{}")
    JobFolder(result.folder).write_record(result.record)


def test_the_commands_name_the_job_that_was_best_on_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "my runs"
    fakes = [Fake(method, seed=seed, skill=skill) for method, skill in (("lora", 4.0), ("ssf", 0.5)) for seed in (0, 1)]
    results = [fake.write(store) for fake in fakes]
    for result in results:
        with_model(result)
    assert studies.call(["recommend", str(store)], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    lora = [r.record for r in results if r.record.method.name == "lora"]
    best = max(lora, key=lambda record: record.choices["validation"].val["macro_f1"] or 0)
    words = [shlex.split(line) for line in lines if line.startswith("peftbench ")]
    assert [one[:3] for one in words] == [["peftbench", "predict", best.id], ["peftbench", "merge", best.id]]
    assert all(str(store) in one for one in words)
    assert lines[0].startswith("Recommendation (busi): lora has the highest macro F1")


def test_limits_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for method, skill in (("lora", 4.0), ("ssf", 0.5)):
        Fake(method, skill=skill).write(tmp_path)
    assert studies.call(["recommend", str(tmp_path), "--max-share", "0.1%"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Recommendation (busi): no method is within the limits.")
    assert "Not compared: lora trains 1.02% (27,648 parameters)." in printed
    assert studies.call(["recommend", str(tmp_path), "--json"], monkeypatch) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["not_beaten"] == ["lora"]
    assert studies.call(["recommend", str(tmp_path), "--max-latency", "fast"], monkeypatch) == 2
    assert "write a number with its unit, such as 20ms" in capsys.readouterr().err
    assert studies.call(["recommend", str(tmp_path), "--max-share", "lots"], monkeypatch) == 2
    assert "--max-share must be a share such as 0.5% or a number such as 100k, got 'lots'" in capsys.readouterr().err
