"""`peftbench claims` prints ten verdicts for each setting, with numbers and commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import studies
from tests.records import Fake


def test_ten_claims_are_printed_and_synthetic_data_are_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("shpeft", "full"):
        Fake(method, "phantom_ct", synthetic=True).write(tmp_path)
    assert studies.call(["claims", str(tmp_path)], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "Synthetic data: nothing here is shown about medical images." in printed
    assert printed.count("UNDECIDED") == 10
    assert "peftbench run --methods" in printed
    assert studies.call(["claims", str(tmp_path), "--json"], monkeypatch) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [one["claim"] for one in found["claims"]] == list(range(1, 11))


def test_an_empty_store_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    assert studies.call(["claims", str(tmp_path)], monkeypatch) == 2
    assert "holds no finished job" in capsys.readouterr().err
