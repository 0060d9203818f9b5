"""The table at the end of `peftbench run`: 120 columns, the first tier marked, names as they are."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from peftbench.cli.run import _conclude, result_table, time_account
from peftbench.core.contract import Result
from peftbench.results import summary
from peftbench.results.store import Store
from tests.records import Fake, study


def printed(results: list[Result], *, terminal: bool = False) -> str:
    file = StringIO()
    style = {"force_terminal": True, "color_system": "standard"} if terminal else {}
    Console(width=120, file=file, markup=False, emoji=False, **style).print(result_table(results))  # type: ignore[arg-type]
    return file.getvalue()


def test_three_data_sets_fit_120_columns(tmp_path: Path) -> None:
    lines = printed(study(tmp_path)).splitlines()
    assert max(map(len, lines)) <= 120
    assert any("shpeft[lam=0.5] @ 0.1% (floor)" in line and "451.9 MB" in line for line in lines)


def test_the_first_tier_is_bold(tmp_path: Path) -> None:
    results = [fake.write(tmp_path) for fake in (Fake("full", skill=3.0), Fake("lora", skill=1.0))]
    screen = printed(results, terminal=True)
    best, other = (summary.test_score(result.record, "validation", "macro_f1") for result in results)
    assert f"\x1b[1m{100 * best:.1f}\x1b[0m" in screen
    assert f"\x1b[1m{100 * other:.1f}\x1b[0m" not in screen


def test_names_are_neither_markup_nor_escape_codes(tmp_path: Path) -> None:
    screen = printed([Fake("lora", dataset="[bold]busi[/] :smile: \x1b[31m").write(tmp_path)], terminal=True)
    assert "[bold]busi[/] :smile: \\x1b[31m" in screen


def test_no_results_no_rows() -> None:
    assert result_table([]).row_count == 0


def test_the_account_of_a_run_adds_up_to_the_time_of_its_workers() -> None:
    """Two jobs of 12.34 s by two workers in 30 s: 60 s in all."""
    said = time_account([Fake("lora").costs(), Fake("full").costs()], 2, 30.0)
    parts = "selecting weights 1 s, training 20 s, evaluation 2 s, other parts of jobs 2 s, starting and waiting 35 s"
    assert said == f"Time of 2 workers: {parts}."


def test_a_run_of_two_trained_methods_ends_with_the_recommendation_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [fake.write(tmp_path) for fake in (Fake("full", skill=4.0), Fake("lora", skill=0.5))]
    assert _conclude([result.record.id for result in results], Store(tmp_path), 1.0) == 0
    printed = capsys.readouterr().out
    assert printed.count("Recommendation (busi, one seed): full has the highest macro F1") == 1
