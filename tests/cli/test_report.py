"""What `peftbench report` writes where."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.cli.report import LONG, write_report
from tests.records import Fake


def stores(root: Path) -> Path:
    for method in ("lora", "full"):
        for dataset in ("folder:my set", "folder:my_set", "busi"):
            Fake(method=method, dataset=dataset).write(root)
    return root


def test_one_report_per_data_set_or_method(tmp_path: Path) -> None:
    store = stores(tmp_path / "store")
    write_report(store, ["csv"], tmp_path / "a", per="dataset")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["busi", "folder_my_set", "folder_my_set_2"]
    write_report(store, ["csv"], tmp_path / "b", per="method")
    assert {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "b").glob("*/*")} == {
        "results.csv": 4  # three data sets and the head
    }
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["full", "lora"]


def test_long_tables_suggest_smaller_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(LONG + 1):
        Fake(label=f"lora[r={number}]", seed=number % 2).write(tmp_path / "store")
    write_report(tmp_path / "store", ["csv"], tmp_path / "out")
    assert f"up to {LONG + 1} rows; --per method or --per dataset" in capsys.readouterr().out
