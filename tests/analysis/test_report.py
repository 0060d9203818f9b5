"""`peftbench analyze` writes words, tables and figures that name no patient and no path, and computes nothing twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

import pandas as pd
import pytest

from peftbench.analysis import positions, weight_change
from peftbench.analysis.full_jobs import FullJob
from tests import studies
from tests.analysis import stores

FILES = {
    "sparsity": {"sparsity.csv", "sparsity_kept.csv"},
    "hybridity": {"hybridity.csv", "hybridity_matrix.csv"},
    "positions": {"positions.csv", "positions_overlap.csv", "positions_correlation.csv"},
}
FIGURES = {
    "sparsity": ["sparsity"],
    "hybridity": ["hybridity"],
    "positions": ["positions", "positions_overlap", "positions_correlation"],
}
PATIENT = "Erika_Mustermann"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose folder and files name a patient."""
    home = tmp_path_factory.mktemp(PATIENT)
    studies.draw(home / "images", 12)
    for file in sorted((home / "images").rglob("*.png")):
        file.rename(file.with_name(f"{PATIENT}_{file.name}"))
    for seed in (0, 1):
        stores.make(home, seed=seed, steps=8)
    return home


@pytest.mark.parametrize("name", FILES)
def test_an_analysis_is_written_without_names_and_a_second_call_computes_nothing(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(home / "cache"))
    out, again = tmp_path / "out", tmp_path / "again"
    assert studies.call(["analyze", name, str(home / "runs"), "--out", str(out)], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "One data set only" in printed
    figures = {f"{stem}.{suffix}" for stem in FIGURES[name] for suffix in ("png", "svg", "pdf")}
    assert {file.name for file in out.iterdir()} == FILES[name] | figures | {f"{name}.md"}
    written = [*out.iterdir(), *(file for file in (home / "runs" / "analysis").rglob("*") if file.is_file())]
    assert [file for file in written if PATIENT.encode() in file.read_bytes() or b"/tmp" in file.read_bytes()] == []
    assert "What is missing:" in (out / f"{name}.md").read_text()

    def refuse(_: FullJob) -> NoReturn:
        raise AssertionError

    for method in ("mixed", "pretrained", "tuned", "probe"):
        monkeypatch.setattr(FullJob, method, refuse)
    assert studies.call(["analyze", name, str(home / "runs"), "--out", str(again)], monkeypatch) == 0
    assert {file.name: file.read_bytes() for file in again.iterdir() if file.suffix != ".pdf"} == {
        file.name: file.read_bytes()
        for file in out.iterdir()
        if file.suffix != ".pdf"  # which holds the time
    }


@pytest.mark.parametrize("name", FILES)
def test_every_column_is_described_where_other_programs_look(name: str, home: Path) -> None:
    series = stores.series(studies.places(home))
    for units in (weight_change.sparsity_units, weight_change.hybridity_units, positions.position_units):
        for unit in units(series):
            unit.run()
    overlaps = weight_change.overlap_frame(series)
    tables: dict[str, list[pd.DataFrame]] = {
        "sparsity": [
            weight_change.evaluations(series),
            weight_change.kept_frame(series, weight_change.kept(series)),
        ],
        "hybridity": [overlaps, weight_change.overlap_matrix(overlaps)],
        "positions": [
            positions.position_frame(series),
            positions.position_overlaps(series),
            positions.position_correlations(series),
        ],
    }
    text = (positions if name == "positions" else weight_change).__doc__ or ""
    for table in tables[name]:
        assert [column for column in table.columns if not re.search(rf"\b{column}\b", text)] == []


def test_the_sentences_rest_on_the_numbers_of_the_csv(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(home / "cache"))
    assert studies.call(["analyze", "sparsity", str(home / "runs"), "--out", str(tmp_path)], monkeypatch) == 0
    table = pd.read_csv(tmp_path / "sparsity_kept.csv")
    (row,) = table[(table["order"] == "moved") & (table["share"] == 0.1)].to_dict("records")
    assert f"{100 * row['kept']:.1f}%" in (tmp_path / "sparsity.md").read_text()
    assert (home / "runs" / "analysis" / "sparsity_kept.csv").read_bytes() == (
        tmp_path / "sparsity_kept.csv"
    ).read_bytes()
    single = pd.read_csv(tmp_path / "sparsity.csv")
    moved, whole = (
        single[(single["order"] == order) & (single["share"] == share)].sort_values("seed")["macro_f1"].to_numpy()
        for order, share in (("moved", 0.1), ("all", 1.0))
    )
    assert row["kept"] == pytest.approx((moved / whole).mean())  # every seed has its own test part


def test_a_store_that_is_none_is_an_error_of_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert studies.call(["analyze", "sparsity", str(tmp_path)], monkeypatch) == 2
    assert capsys.readouterr().err.startswith("peftbench: There are no results in")
