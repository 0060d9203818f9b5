"""The cost of methods on random images, kept for plans; times are never judged, only that they are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftbench.benchmarks import forecast, measure
from peftbench.benchmarks.forecast import expect, outline
from peftbench.core.recipe import Recipe
from peftbench.core.spec import Places, Study
from peftbench.errors import RequestError
from peftbench.models.backbone import locate
from peftbench.profiling import counting, history
from peftbench.profiling.history import Measured
from peftbench.results import formatting
from peftbench.storage.sizes import format_size
from peftbench.study.method_grid import sized_methods
from tests import studies
from tests.studies import call, places

TINY = "timm:vit_tiny_patch16_224[img_size=32,depth=1]@random"  # 5 tokens of width 192
ASKED = studies.study(methods=("bitfit", "lora[r=2]", "shpeft", "linear"), backbone=TINY, batch=2, precision="fp32")
PLANNED = studies.study(methods=ASKED.methods, datasets=("busi",), backbone=TINY, recipe="quick", baselines=False)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return places(tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="module")
def rows(here: Places) -> dict[str, Measured]:
    return {row.method: row for row in measure.table(ASKED, here, seconds=0.0)}


def test_full_tuning_comes_first_whether_asked_for_or_not(rows: dict[str, Measured]) -> None:
    assert list(rows) == ["full", "bitfit", "lora[r=2]", "shpeft", "linear"]


def test_counts_are_those_of_a_job(rows: dict[str, Measured]) -> None:
    blank = locate(TINY).blank()
    total = sum(p.numel() for p in blank.parameters())
    assert rows["full"].trainable == total
    assert rows["shpeft"].trainable == round(0.01 * total)
    assert rows["lora[r=2]"].trainable == 2 * (192 + 3 * 192)
    assert {row.head for row in rows.values()} == {2 * 193}


def test_full_tuning_costs_the_most(rows: dict[str, Measured]) -> None:
    full = rows["full"]
    for row in rows.values():
        assert row.flops_training <= full.flops_training
        assert row.memory.total <= full.memory.total
        assert row.delta_bytes <= full.delta_bytes


def test_a_delta_weighs_its_tensors_and_little_more(rows: dict[str, Measured]) -> None:
    found = rows["lora[r=2]"]
    assert 0 < found.delta_bytes - 4 * (found.trainable + found.head) < 4096


def test_only_a_method_that_asks_looks_at_images(rows: dict[str, Measured]) -> None:
    assert {name: row.selection_images for name, row in rows.items()} == {
        **dict.fromkeys(rows, 0),
        "shpeft": measure.TRAIN_BATCHES * 2,
    }


def test_latency_is_taken_merged_where_merging_changes_the_network(rows: dict[str, Measured]) -> None:
    merged = {name for name, row in rows.items() if "1 merged" in row.latency}
    assert merged == {"lora[r=2]", "shpeft"}
    for row in rows.values():
        assert all(0 < one.p50 <= one.p95 and one.runs >= 1 for one in row.latency.values())
        assert min(row.images_per_second, row.predicted_per_second, row.steps) > 0


def test_the_head_alone_trains_on_stored_features(rows: dict[str, Measured]) -> None:
    assert [name for name, row in rows.items() if row.stored] == ["linear"]
    assert rows["linear"].memory.activations == 0
    assert rows["linear"].flops_forward == rows["full"].flops_forward


def test_the_word_paper_means_the_methods_of_its_table(here: Places) -> None:
    table = measure.table(studies.study(ASKED, methods=("paper",)), here, seconds=0.0)
    assert next(table).method == "full"
    assert next(table).method == "adaptformer"  # the first of them by name


def test_what_trains_nothing_is_not_measured(here: Places) -> None:
    with pytest.raises(RequestError, match="--methods majority: it has no training steps"):
        list(measure.table(studies.study(methods=("majority",), backbone=TINY), here))


def test_the_threads_are_as_before(here: Places) -> None:
    before = torch.get_num_threads()
    asked = studies.study(methods=("linear",), backbone=TINY, batch=2, threads=before + 1)
    assert next(iter(measure.table(asked, here, seconds=0.0))).method == "full"
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("seconds", "runs"), [(0.0, 1), (1e9, measure.MAX_RUNS)])
def test_a_first_run_is_left_out_unless_it_took_all_the_time(seconds: float, runs: int) -> None:
    calls: list[int] = []
    assert len(measure.repeat(lambda: calls.append(1), seconds)) == runs
    assert len(calls) == (1 if runs == 1 else runs + 1)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_what_was_measured_foretells_the_time_of_training(here: Places, rows: dict[str, Measured]) -> None:
    asked = studies.study(methods=("lora[r=2]",), backbone=TINY)
    (row,) = sized_methods(studies.study(methods=asked.methods, backbone=TINY, baselines=False), locate(TINY))
    recipe = Recipe(steps=30, batch=4, precision="fp32")
    found = forecast.seconds(row, recipe, 1, here)
    assert found == pytest.approx(120 / rows["lora[r=2]"].images_per_second)
    assert forecast.seconds(row, Recipe(precision="bf16"), 1, here) is None
    assert forecast.seconds(row, recipe, 2, here) is None


def test_a_damaged_entry_is_none(tmp_path: Path, rows: dict[str, Measured]) -> None:
    history.remember(tmp_path, {"a": 1}, rows["full"])
    assert history.recall(tmp_path, {"a": 1}) == rows["full"]
    assert history.recall(tmp_path, {"a": 2}) is None
    (file,) = (tmp_path / "measured").glob("*/*")
    file.write_text("{}")
    assert history.recall(tmp_path, {"a": 1}) is None


def test_expected_memory_is_what_is_counted_on_the_real_network(here: Places, rows: dict[str, Measured]) -> None:
    recipe = Recipe("measure", batch=2, precision="fp32")
    wanted = studies.study(methods=ASKED.methods, backbone=TINY, baselines=False)
    for row in sized_methods(wanted, locate(TINY)):
        found, real = expect(row, recipe, here.device), rows[row.label].memory
        assert found
        if found.exact:
            assert found.memory == real
        else:
            assert row.name == "shpeft"
            assert found.memory.gradients == real.gradients
            assert found.memory.activations >= real.activations
            assert found.memory.weights >= real.weights


def test_a_plan_states_memory_and_time_or_how_to_get_it(
    here: Places, rows: dict[str, Measured], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outline(Study(**{**vars(PLANNED), "precision": "fp32"}), here)
    assert all(row["seconds"] > 0 and row["memory"] > 0 for row in found)
    assert {row["method"]: row["memory is"] for row in found}["shpeft"] == "at most"
    assert all(row["seconds"] is None for row in outline(PLANNED, places(here.cache / "elsewhere")))
    monkeypatch.setenv("PEFTBENCH_CACHE", str(here.cache / "elsewhere"))
    words = ("--methods", "majority,bitfit", "--datasets", "busi", "--backbone", TINY, "--no-baselines")
    assert call(["plan", *words], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "Duration unknown for bitfit" in shown
    assert f"peftbench measure --methods bitfit --backbone '{TINY}'" in " ".join(shown.split())
    assert rows


def test_a_plan_finds_what_measure_kept_in_the_same_cache(
    here: Places,
    rows: dict[str, Measured],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rows
    asked = f'methods = ["bitfit"]\ndatasets = ["busi"]\nbackbone = "{TINY}"\nprecision = "fp32"\nbaselines = false\n'
    (tmp_path / "study.toml").write_text(asked)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(here.cache))
    assert call(["plan", str(tmp_path / "study.toml")], monkeypatch) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "with a known duration" in shown
    assert "Duration unknown" not in shown


# --- the verb --------------------------------------------------------------------------------------------------------


def test_the_verb_prints_tables_and_writes_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "cost.json"
    words = ("--methods", "lora", "--ratios", "1%", "--backbone", TINY, "--batch", "2", "--seconds", "0")
    assert call(["measure", *words, "--out", str(out)], monkeypatch) == 0
    shown = capsys.readouterr().out
    for word in ("GFLOPs forward", "full", "lora", "(1.00)", "merged at 64", "activations", "1 thread;"):
        assert word in shown
    assert '"environment"' in out.read_text()
    assert max(map(len, shown.splitlines())) <= 120


def test_an_unknown_method_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["measure", "--methods", "loro", "--backbone", TINY], monkeypatch) == 2
    assert "lora" in capsys.readouterr().err


def test_units_of_cost() -> None:
    assert formatting.format_giga(35.126e9) == "35.1"
    assert formatting.format_giga(1234.5e9) == "1,234"
    assert (formatting.format_rate(0.4567), formatting.format_rate(1234.5)) == ("0.457", "1,234")
    assert format_size(3 * 10**6) == "3.0 MB"
    assert counting.batch_bytes((1, 3, 2, 2)) == 60
