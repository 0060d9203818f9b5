"""Tables before they are formatted: marks, budgets, captions."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from peftbench.core.contract import Result
from peftbench.core.recipe import RECIPES
from peftbench.core.record import Memory, Tuning, Variant
from peftbench.results import formatting, tables
from peftbench.results.frame import frame
from peftbench.results.table import Table
from tests.records import PARAMETERS, Fake, study


def write(store: Path, *fakes: Fake) -> list[Result]:
    return [fake.write(store) for fake in fakes]


def find(results: list[Result], name: str) -> Table:
    (found,) = [table for table in tables.tables(results) if table.name == f"{name}_1"]
    return found


def column(table: Table, name: str) -> list[str]:
    return [str(row[table.columns.index(name)]) for row in table.rows]


def test_only_a_whole_first_tier_is_marked(tmp_path: Path) -> None:
    """On 90 images, skills of 3 and 2.9 are a tie, and one of .5 is not."""
    fakes = (Fake("linear", skill=3.0), Fake("lora", skill=2.9), Fake("bitfit", skill=0.5), Fake("majority", skill=-1))
    table = find(write(tmp_path, *fakes), "data_busi")
    marks = dict(
        zip(column(table, "method"), (row[table.columns.index("macro F1")].mark for row in table.rows), strict=True)
    )
    assert marks == {"majority (baseline)": "", "linear (baseline)": "best", "bitfit": "", "lora": "best"}


def test_tiers_say_how_far_each_method_is_from_the_first(tmp_path: Path) -> None:
    results = write(
        tmp_path, *(Fake(name, skill=skill) for name, skill in (("lora", 3.0), ("ssf", 2.9), ("full", 0.5)))
    )
    table = find(results, "tiers_busi")
    assert column(table, "tier") == ["1", "1", "2"]
    assert column(table, "method")[-1] == "full"
    assert [text.startswith("< 0.001") for text in column(table, "p (Holm)")] == [False, False, True]
    assert "would be found with 80% power" in table.caption
    assert "With one seed, the variance between seeds is not covered" in table.caption


def test_target_and_reached_stand_side_by_side(tmp_path: Path) -> None:
    fake = Fake(target=round(0.0001 * PARAMETERS), trainable=4_096, edge="floor")
    table = find(write(tmp_path, fake), "data_busi")
    assert table.columns.index("target") < table.columns.index("trained")
    assert column(table, "target") == ["0.01% (floor)"]
    assert column(table, "trained") == ["4,096"]
    assert column(table, "with head") == ["4,675"]
    assert column(table, "share") == ["0.152%"]


def test_costs_and_rates_are_shown_with_their_units(tmp_path: Path) -> None:
    table = find(write(tmp_path, Fake(seed=0, lr=1e-3), Fake(seed=1, lr=1e-2)), "data_busi")
    assert column(table, "memory") == ["451.9 MB"]
    assert column(table, "seconds") == ["12.3"]
    assert column(table, "lr") == ["0.001, 0.01*"]


def test_an_undefined_auc_is_a_dash(tmp_path: Path) -> None:
    assert column(find(write(tmp_path, Fake(absent=2)), "data_busi"), "AUC") == [formatting.NONE]


def test_a_failed_job_is_in_its_table_and_in_that_of_failures(tmp_path: Path) -> None:
    results = write(tmp_path, Fake(), Fake("ssf", reason="out of memory"))
    assert column(find(results, "data_busi"), "macro F1")[1] == "failed"
    assert [str(cell) for cell in find(results, "failed").rows[0]] == ["ssf", "busi", "0", "out of memory"]


def test_a_damaged_job_is_called_damaged_and_not_marked(tmp_path: Path) -> None:
    good, bad = write(tmp_path, Fake(), Fake("full", skill=3.0))
    (bad.folder / "predictions.npz").write_bytes(b"")
    results = [good, bad]
    scores = find(results, "data_busi")
    assert [(row[2].text, row[2].mark) for row in scores.rows] == [("damaged", ""), (scores.rows[1][2].text, "best")]
    assert str(find(results, "failed").rows[0][-1]) == "predictions.npz cannot be read (EOFError)"


def test_nothing_failed_no_table_of_failures(tmp_path: Path) -> None:
    names = [table.name for table in tables.tables(write(tmp_path, Fake()))]
    assert names == ["data_busi_1", "paper_1", "rules_busi_1", "tuning_busi_1", "protocol_data_1", "protocol_1"]


def test_the_overview_averages_only_complete_rows(tmp_path: Path) -> None:
    results = write(tmp_path, Fake(dataset="busi"), Fake(dataset="oct"), Fake("full", dataset="busi"))
    table = find(results, "overview")
    assert table.columns[-3:] == ("busi", "oct", "average (2 of 6)")
    full, lora = table.rows
    assert [str(cell) for cell in full[-2:]] == [formatting.NONE, formatting.NONE]
    assert "[" in str(lora[-1])


def test_the_three_rules_stand_side_by_side(tmp_path: Path) -> None:
    fake = Fake()
    table = find(write(tmp_path, fake), "rules_busi")
    choices = fake.record().choices
    shown = [f"{100 * (choices[rule].test['macro_f1'] or 0):.1f}" for rule in choices]
    assert [column(table, tables.RULE_LABELS[rule])[0] for rule in choices] == shown
    assert "test oracle: not a result" in table.columns


def test_the_caption_describes_how_the_numbers_were_made(tmp_path: Path) -> None:
    fakes = [Fake(dataset="phantom_ct", synthetic=True, seed=seed) for seed in (0, 1)]
    caption = find(write(tmp_path, *fakes), "data_phantom_ct").caption
    for words in (
        "mini, 64 px: not the paper's backbone",
        "Recipe standard, 80 steps",
        "best on validation",
        "seeds 0, 1",
        "90 test images in 15 groups (patient); synthetic data",
        "95% interval (bootstrap over groups of test images)",
    ):
        assert words in caption


def test_the_caption_states_what_was_changed_of_a_recipe(tmp_path: Path) -> None:
    (result,) = write(tmp_path, Fake(recipe="paper"))
    recipe = {**asdict(RECIPES["paper"]), "momentum": 0.0, "head_scale": 16.0}
    (caption,) = tables.caption([replace(result, record=result.record.model_copy(update={"recipe": recipe}))])
    assert "Recipe paper, 40000 steps, 64 images per step, l2 head, momentum 0.0, head scale 16.0; step:" in caption


def test_the_caption_names_data_that_are_not_whole(tmp_path: Path) -> None:
    whole = Fake(dataset="oct").write(tmp_path)
    notes = ["Incomplete copy: 137 of 84484 images are here.", "Of 28 pixels."]
    data = whole.record.data.model_copy(update={"notes": notes})
    (caption,) = tables.caption([replace(whole, record=whole.record.model_copy(update={"data": data}))])
    assert "; oct: incomplete copy: 137 of 84484 images are here. Scores" in caption
    assert "28 pixels" not in caption


def test_the_caption_states_the_order_of_ordinal_classes(tmp_path: Path) -> None:
    results = write(tmp_path, Fake(dataset="grades"), Fake(dataset="busi"))
    for i, result in enumerate(results):
        card = {"classes": ["2", "10", "none"], "task": "ordinal" if result.record.data.name == "grades" else "single"}
        data = result.record.data.model_copy(update={"card": {**result.record.data.card, **card}})
        results[i] = replace(result, record=result.record.model_copy(update={"data": data}))
    assert "; classes: 2 < 10 < none. Scores" in find(results, "data_grades").caption
    assert "classes:" not in find(results, "data_busi").caption
    assert "2 data sets; classes of grades: 2 < 10 < none. Scores" in find(results, "overview").caption


def test_another_backbone_needs_no_excuse(tmp_path: Path) -> None:
    (caption,) = tables.caption(write(tmp_path, Fake(backbone="clip_vit_b16")))
    assert caption.startswith("clip_vit_b16, 64 px. Recipe")


def test_the_frame_has_a_row_a_job_at_full_precision(tmp_path: Path) -> None:
    results = study(tmp_path)
    rows = frame(results)
    assert len(rows) == len(results)
    first = results[0].record
    assert rows["test/oracle/macro_f1"][0] == first.choices["oracle"].test["macro_f1"]
    assert rows["macro_f1_low"][0] <= rows["macro_f1"][0] <= rows["macro_f1_high"][0]
    assert rows["reason"].iloc[-1] == "out of memory at batch 32; the last image was [name]"


SPENT = {
    "memory": Memory(weights=11 * 2**20, gradients=2**18, optimizer=2**19, activations=150 * 2**20, pixels=2**20),
    "flops_forward": 0.369e9,
    "flops_training": 1.1127e9,
    "predicted_per_second": 1234.5,
}


def spending(result: Result) -> Result:
    costs = result.record.costs
    assert costs
    return replace(result, record=result.record.model_copy(update={"costs": costs.model_copy(update=SPENT)}))


def test_operations_and_memory_by_kind_have_a_table_of_their_own(tmp_path: Path) -> None:
    results = [spending(result) for result in write(tmp_path, Fake(seed=0), Fake(seed=1))]
    table = find([*results, *write(tmp_path, Fake("full"))], "costs_busi")
    (row,) = table.rows  # the other record is older than these fields
    shown = dict(zip(table.columns, map(str, row), strict=True))
    assert (shown["GFLOPs forward"], shown["training"]) == ("0.369", "1.11")
    assert (shown["optimizer"], shown["activations"], shown["total"]) == ("524.3 kB", "157.3 MB", "170.7 MB")
    assert (shown["images/s training"], shown["prediction"]) == ("200", "1,234")


def test_the_frame_has_a_column_a_kind_of_memory(tmp_path: Path) -> None:
    rows = frame([spending(*write(tmp_path, Fake())), *write(tmp_path, Fake("full"))])
    assert rows["memory/gradients"][0] == 2**18
    assert rows["memory/gradients"].isna()[1]
    assert "memory" not in rows


def test_a_prediction_rate_that_is_unknown_is_a_dash() -> None:
    assert formatting.SPENT["prediction"]([Fake().record()]) == formatting.NONE


def test_no_results_no_tables() -> None:
    assert tables.tables([]) == []
    assert tables.main_tables([]) == []


@pytest.mark.parametrize(("bytes_", "shown"), [(3 * 10**6, "3.0 MB"), (999_900_000, "999.9 MB"), (2**31, "2.1 GB")])
def test_memory_is_read_at_a_glance(bytes_: int, shown: str) -> None:
    record = Fake().record()
    assert record.costs
    costs = record.costs.model_copy(update={"peak_memory": bytes_})
    assert formatting.COSTS["memory"]([record.model_copy(update={"costs": costs})]) == shown


# --- cuts of the data ------------------------------------------------------------------------------------------------


def cuts(**skills: float) -> list[Fake]:
    return [Fake(skill=skill, variant=Variant(splits=cut)) for cut, skill in skills.items()]  # type: ignore[arg-type]


def test_what_a_leak_was_worth_stands_side_by_side(tmp_path: Path) -> None:
    found = find(write(tmp_path, *cuts(official=4.0, grouped=4.0, deduplicated=1.0)), "leaks_busi")
    assert found.columns[2:] == ("official", "grouped", "deduplicated", "official - grouped", "official - deduplicated")
    (row,) = found.rows
    assert str(row[5]) == "+0.0 [0.0, 0.0]"
    worth = row[6]
    assert float(worth.text) == pytest.approx(float(row[2].text) - float(row[4].text), abs=0.11)
    low, high = (float(bound) for bound in worth.aside.strip("[]").split(","))
    assert 0 < low < float(worth.text) < high


def test_a_share_of_train_is_compared_with_the_same_share(tmp_path: Path) -> None:
    small = [Fake(variant=Variant(cut, share=0.05)) for cut in ("official", "grouped")]
    found = find(write(tmp_path, Fake(), *small, Fake("ssf", variant=Variant("grouped"))), "leaks_busi")
    assert column(found, "method") == ["lora (5% of train)"]
    assert column(found, "deduplicated") == [formatting.NONE]


def test_without_two_cuts_there_is_no_table_of_leaks(tmp_path: Path) -> None:
    names = [table.name for table in tables.tables(write(tmp_path, Fake(), Fake(variant=Variant(shots=4))))]
    assert not [name for name in names if name.startswith("leaks")]


def test_scores_over_the_rates_are_shown_for_each_optimizer(tmp_path: Path) -> None:
    tuning = {
        "optimizers": ["adamw", "adamw", "sgd", "sgd"],
        "grid": [1e-3, 1e-4, 0.01, 0.1],
        "scores": [0.5, 0.25, 0.75, None],
        "trials": ["a", "b", "c", "d"],
        "chosen": 0.01,
        "edge": "lowest",
    }
    (result,) = write(tmp_path, Fake("lora"))
    record = result.record.model_copy(
        update={"tuning": Tuning.model_validate(tuning), "recipe": {**result.record.recipe, "optimiser": "sgd"}}
    )
    table = find([Result(record, result.folder)], "tuning_busi")
    assert column(table, "optimizer") == ["adamw", "sgd"]
    assert column(table, "rate: score") == ["0.0001: 25.0, 0.001: 50.0", "0.01: 75.0, 0.1: failed"]
    assert column(table, "chosen") == ["", "0.01 (lowest tried)"]
    shown = find([Result(record, result.folder)], "data_busi")
    assert column(shown, "lr") == [f"sgd {record.recipe['lr']:g}* (edge)"]
    assert "(edge): the lowest or highest rate that was tried" in shown.caption


def test_fields_that_were_tuned_stand_beside_the_rate_and_share_a_row(tmp_path: Path) -> None:
    tuning = {
        "optimizers": ["adamw"] * 3,
        "grid": [1e-3, 1e-4, 1e-3],
        "scores": [0.5, 0.25, 0.75],
        "settings": [{}, {}, {"layer_decay": 0.75}],
        "trials": ["a", "b", "c"],
        "chosen": 1e-3,
    }
    both = []
    for result, decay in zip(write(tmp_path, Fake("full"), Fake("full", seed=1)), (0.75, 1.0), strict=True):
        method = result.record.method.model_copy(update={"fields": {"layer_decay": decay}})
        update = {"tuning": Tuning.model_validate(tuning), "method": method}
        both.append(Result(result.record.model_copy(update=update), result.folder))
    table = find(both, "tuning_busi")
    assert column(table, "rate: score") == ["0.0001: 25.0, 0.001: 50.0, 0.001 (layer_decay=0.75): 75.0"]
    assert column(table, "chosen") == ["0.001 (layer_decay=0.75)"]
    assert len(column(find(both, "data_busi"), "method")) == 1


def test_the_protocol_has_data_parts_and_what_all_methods_share(tmp_path: Path) -> None:
    results = write(tmp_path, Fake(), Fake(seed=1), Fake("ssf", dataset="covid_ct"))
    data = find(results, "protocol_data")
    assert column(data, "data set") == ["covid_ct", "busi"]
    assert all(cell.text for row in data.rows for cell in row)
    shared = find(results, "protocol")
    facts = dict(zip(column(shared, "fact"), column(shared, "value"), strict=True))
    assert facts["seeds"] == "0, 1"
    assert facts["backbone"].startswith("mini, ")


def test_a_table_has_scores_per_patient_and_per_image(tmp_path: Path) -> None:
    results = [Fake(seed=seed, same_label=True).write(tmp_path) for seed in range(2)]
    (table,) = (one for one in tables.tables(results) if one.name.startswith("per_group"))
    assert table.subject == "busi: per patient"
    assert "Counted: 45." in table.caption
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert float(cells["macro F1"].text) > float(cells["macro F1 per image"].text)  # two images know more than one
    assert cells["macro F1"].aside.startswith("[")


def test_patients_with_images_of_several_labels_have_no_score(tmp_path: Path) -> None:
    assert not any(one.name.startswith("per_group") for one in tables.tables([Fake().write(tmp_path)]))
