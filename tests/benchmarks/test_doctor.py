"""The doctor names what a machine has, gives a fix for what lacks, and fails only where nothing can run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from peftbench.benchmarks import doctor
from peftbench.benchmarks.doctor import Check, can_run, examine
from tests import studies


def by_part(found: list[Check]) -> dict[str, Check]:
    return {check.part: check for check in found}


def test_every_part_has_a_state_and_what_is_missing_has_a_fix(tmp_path: Path) -> None:
    found = by_part(examine(tmp_path / "data", tmp_path / "cache", tmp_path / "runs"))
    wanted = {"python", "torch", "training", "CUDA", "precision", "memory", "disk", "data", "weights", "Slurm", "Ray"}
    assert wanted <= set(found)
    assert [part for part, check in found.items() if check.state == "missing" and not check.fix] == []
    assert found["training"].state == "ok"
    assert found["data"].state == "missing"
    assert "peftbench list datasets" in found["data"].fix
    assert found["weights"].found.startswith("mini of ")
    assert can_run(list(found.values()))


def test_without_torch_nothing_runs_and_nothing_else_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError(f"libcudart.so.13 of {name}: cannot open shared object file")

    monkeypatch.setattr(doctor, "import_module", broken)
    found = by_part(examine())
    assert set(found) == {"python", "torch", "training"}
    assert found["torch"].state == "broken"
    assert "libcudart.so.13 of torch" in found["torch"].found
    assert found["torch"].fix
    assert not can_run(list(found.values()))


def test_a_package_that_raises_beside_the_essential_ones_does_not_end_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exits(_: object) -> Check:
        raise SystemExit(3)

    monkeypatch.setitem(doctor.OTHERS, "Ray", exits)
    found = examine()
    assert by_part(found)["Ray"].state == "missing"
    assert can_run(found)


def test_little_memory_and_a_closed_folder_are_named_with_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=1 << 30))
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = by_part(examine(store=tmp_path / "runs"))
    assert "--jobs 1" in found["memory"].fix
    assert found["disk"].fix == "Pass --store FOLDER with a folder that you may write to."


def test_the_command_prints_a_line_for_each_part_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert studies.call(["doctor", "--json"], monkeypatch) == 0
    parts = [check["part"] for check in json.loads(capsys.readouterr().out)]
    monkeypatch.setattr(doctor, "examine", lambda *_: [Check("torch", "broken", "no torch", "Install it.")])
    assert studies.call(["doctor"], monkeypatch) == 1
    lines = capsys.readouterr().out.splitlines()
    assert parts[:3] == ["python", "torch", "training"]
    assert lines == ["broken   torch: no torch. Install it.", "broken: no study can run here."]
