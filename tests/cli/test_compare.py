"""`peftbench compare` prints pairs, tiers and what they cannot show."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import peftbench
from tests import studies
from tests.records import Fake


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for method, skill in (("lora", 4.0), ("ssf", 3.9), ("bitfit", 0.5)):
        Fake(method, skill=skill).write(tmp_path / "runs")
    return tmp_path / "runs"


def test_pairs_tiers_and_limits_are_printed(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert studies.call(["compare", str(store)], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "no difference shown" in printed
    assert "Tier 1: lora, ssf" in printed
    assert "Tier 2: bitfit" in printed
    assert "would be found with 80% power" in printed
    assert "With one seed, the variance between seeds is not covered." in printed


@pytest.mark.parametrize("verb", ["compare", "recommend", "claims"])
def test_a_record_that_cannot_be_read_is_named_and_left_out(
    verb: str, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Fake("adaptformer", skill=1.0).write(store).folder / "record.json"
    broken.write_text('{"x"')
    assert studies.call([verb, str(store)], monkeypatch) == 0
    printed = capsys.readouterr()
    assert printed.out
    assert printed.err.startswith(f"peftbench: The record {broken} cannot be read")
    assert len(printed.err.splitlines()) == 1


def test_all_pairs_as_json_csv_and_data_frame_are_the_same(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pairs.csv"
    assert studies.call(["compare", str(store), "--against", "lora", "--json", "--csv", str(file)], monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["other"], row["verdict"]) for row in rows] == [
        ("ssf", "lora", "no difference shown"),
        ("bitfit", "lora", "worse"),
    ]
    table = peftbench.compare(store, against="lora")
    pd.testing.assert_frame_equal(pd.DataFrame(rows), table, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(file), table, check_dtype=False)


def test_no_text_of_the_csv_is_a_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("lora", "bitfit"):
        Fake(method, dataset="=HYPERLINK(1)").write(tmp_path / "runs")
    assert studies.call(["compare", str(tmp_path / "runs"), "--csv", str(tmp_path / "pairs.csv")], monkeypatch) == 0
    cells = (tmp_path / "pairs.csv").read_text().replace("\n", ",").split(",")
    assert "'=HYPERLINK(1)" in cells
    assert not [cell for cell in cells if cell.startswith("=")]


def test_a_metric_that_cannot_be_compared_is_refused_in_a_sentence(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert studies.call(["compare", str(store), "--metric", "recal"], monkeypatch) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("peftbench: --metric recal: cannot be compared; choose one of ")
    assert shown.count("\n") == 1
