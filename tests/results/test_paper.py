"""Published scores beside measured ones, visibly apart, with what differs in protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from peftbench.core.published import published_scores
from peftbench.core.spec import find_study, label, load_study
from peftbench.core.syntax import parse
from peftbench.results.table import Table
from peftbench.results.tables import tables
from peftbench.study.method_grid import expand, resolve_method
from tests.records import Fake


def made(store: Path, *fakes: Fake) -> dict[str, Table]:
    return {table.name: table for table in tables([fake.write(store) for fake in fakes])}


def cells(table: Table) -> dict[str, Mapping[str, str]]:
    rows = [dict(zip(table.columns, map(str, row), strict=True)) for row in table.rows]
    return {row[table.columns[0]]: row for row in rows}


def test_the_main_table_has_both_scores_of_every_method(tmp_path: Path) -> None:
    fakes = [Fake(name, where, skill=2.0) for name in ("lora", "shpeft") for where in ("busi", "covid_ct")]
    table = made(tmp_path, *fakes)["paper_1"]
    rows = cells(table)
    assert len(rows) == 12
    assert rows["lora"]["busi, published"] == "87.8"
    assert "[" in rows["lora"]["busi, measured"]
    assert rows["spt_lora"]["type"] == "S+A"
    assert rows["full"]["busi, measured"] == "–"
    assert rows["lora"]["average (2 of 6), published"] == "85.1"


def test_the_six_data_sets_have_the_printed_average(tmp_path: Path) -> None:
    names = ("chaoyang", "covid_ct", "busi", "chest_xray", "oct", "limuc")
    table = made(tmp_path, *(Fake("spt_lora", name) for name in names))["paper_1"]
    assert cells(table)["spt_lora"]["average, published"] == "82.9"


def test_differences_in_protocol_are_listed_beneath(tmp_path: Path) -> None:
    caption = made(tmp_path, Fake("lora", "busi"))["paper_1"].caption
    for phrase in (
        "backbone mini, 64 px (paper: CLIP ViT-B/16, 224 px)",
        "learning rate tuned (paper: 0.001)",
        "steps 80 (paper: 40000)",
        "not stated in the paper, here weight decay 0.01",
        "busi 400/50/90 images (paper: 559/79/160)",
        "1 seed",
    ):
        assert phrase in caption


def test_models_that_were_made_for_one_data_set_stand_beside_sh_peft(tmp_path: Path) -> None:
    found = made(tmp_path, Fake("shpeft", "covid_ct"), Fake("lora", "covid_ct"))
    rows = cells(found["paper_covid_ct_1"])
    assert rows["ResGANet MIA'22"]["ACC, published"] == "80.0"
    assert "paper_covid_ct_1" not in made(tmp_path / "other", Fake("lora", "covid_ct"))


def test_ablations_are_shown_once_two_variants_were_run(tmp_path: Path) -> None:
    variants = [Fake("shpeft", "busi", label=label, skill=2.0) for label in ("shpeft", "shpeft[ta=none]")]
    rows = cells_by_method(made(tmp_path, *variants)["paper_ablations_1"])
    assert rows["I^td L2 (shpeft[ta=none])"]["F1, published"] == "82.0"
    assert "[" in rows["I^td L2 (shpeft[ta=none])"]["F1, measured"]
    assert "paper_ablations_1" not in made(tmp_path / "one", variants[0])


def cells_by_method(table: Table) -> dict[str, Mapping[str, str]]:
    rows = [dict(zip(table.columns, map(str, row), strict=True)) for row in table.rows]
    return {row["method"]: row for row in rows}


def test_other_data_sets_and_methods_have_no_such_table(tmp_path: Path) -> None:
    assert not any(name.startswith("paper") for name in made(tmp_path, Fake("lora", "phantom_ct"), Fake("gps", "busi")))


@pytest.mark.parametrize(("study", "table"), [("paper-table1", 1), ("paper-table4", 4), ("paper-table5", 5)])
def test_the_named_studies_run_the_methods_of_their_tables(study: str, table: int) -> None:

    methods = [resolve_method(spec, "paper") for spec in expand(load_study(find_study(study)).methods)]
    labels = {label(one.name, one.method.values(), type(one.method)().values()) for one in methods}
    assert labels == {one.method for one in published_scores() if one.table == table}
    assert all(parse(one) for one in labels)
