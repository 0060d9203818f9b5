"""How jobs become rows: which jobs share a row, which may be averaged, and what notes a row has."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftbench.core.constants import PAPER_DATASETS
from peftbench.core.contract import Result
from peftbench.core.record import WHOLE, Record, Variant
from peftbench.results import summary
from peftbench.results.store import JobFolder
from peftbench.results.summary import Block, MethodRow
from peftbench.statistics import bootstrap
from tests.records import PARAMETERS, Fake, study


def block(store: Path, *fakes: Fake) -> Block:
    (found,) = summary.summarize([fake.write(store) for fake in fakes])
    return found


def row(store: Path, *fakes: Fake) -> MethodRow:
    (found,) = block(store, *fakes).rows
    return found


def test_seeds_share_an_entry(tmp_path: Path) -> None:
    entry = row(tmp_path, Fake(seed=0), Fake(seed=1), Fake(seed=2)).replicates["busi"]
    scores = [summary.test_score(record, "validation", "macro_f1") for record in entry.records]
    assert entry.mean("macro_f1") == pytest.approx(np.mean(scores))
    assert entry.spread("macro_f1") == pytest.approx(np.std(scores, ddof=1))


def test_budgets_have_rows_of_their_own(tmp_path: Path) -> None:
    rows = block(tmp_path, Fake(target=27_000), Fake(target=2_700)).rows
    assert [row.target for row in rows] == [2_700, 27_000]


def test_two_runs_of_one_seed_are_never_averaged(tmp_path: Path) -> None:
    rows = block(tmp_path, Fake(lr=1e-3, tuned=False), Fake(lr=1e-2, tuned=False)).rows
    assert [row.label for row in rows] == ["lora", "lora #2"]


@pytest.mark.parametrize("other", [(0, 1, 2, 3, 4), (0, 1), (3,)], ids=["as many", "fewer", "one"])
def test_a_rate_that_was_given_makes_a_row_whatever_its_seeds(tmp_path: Path, other: tuple[int, ...]) -> None:
    fakes = [Fake(lr=1e-3, tuned=False, seed=seed) for seed in range(5)]
    fakes += [Fake(lr=1e-2, tuned=False, seed=seed) for seed in other]
    rows = block(tmp_path, *fakes).rows
    assert [row.label for row in rows] == ["lora", "lora #2"]
    rates = [{record.recipe["lr"] for record in row.records} for row in rows]
    assert sorted(map(len, rates)) == [1, 1]
    assert sorted(len(row.records) for row in rows) == sorted([5, len(other)])


def test_rates_that_were_looked_for_share_a_row(tmp_path: Path) -> None:
    (row,) = block(tmp_path, Fake(lr=1e-3, seed=0), Fake(lr=1e-2, seed=1), Fake("lora", "covid_ct", lr=1e-4)).rows
    assert {name: len(entry.done) for name, entry in row.replicates.items()} == {"busi": 2, "covid_ct": 1}


@pytest.mark.parametrize("change", [{"threads": 2}, {"backbone": {"digest": "e" * 64}}, {"method": {"version": 2}}])
def test_whatever_else_differs_is_no_seed(tmp_path: Path, change: dict[str, Any]) -> None:
    first, second = (Fake(seed=seed).write(tmp_path) for seed in (0, 1))
    given = second.record.model_dump()
    for key, value in change.items():
        given[key] = {**given[key], **value} if isinstance(value, dict) else value
    (found,) = summary.summarize([first, replace(second, record=Record.model_validate(given))])
    assert [len(row.records) for row in found.rows] == [1, 1]


@pytest.mark.parametrize(("added", "sizes"), [(1, [3, 3]), (0, [1] * 6)], ids=["other counts", "other contents"])
def test_another_version_of_the_images_is_another_row(tmp_path: Path, added: int, sizes: list[int]) -> None:
    """Where every seed has its own parts, and so its own fingerprint, counts tell versions apart, or nothing does."""

    def of(seed: int, version: int) -> Result:
        made = Fake(seed=seed, skill=1 + version).write(tmp_path)
        balance = {"train": [100 - seed, 100 + version * added], "test": [seed, 90]}
        data = made.record.data.model_copy(update={"balance": balance, "fingerprint": f"{seed} {version}"})
        return replace(made, record=made.record.model_copy(update={"data": data}))

    (found,) = summary.summarize([of(seed, version) for seed in range(3) for version in range(2)])
    assert [len(row.records) for row in found.rows] == sizes
    assert all(len({record.data.fingerprint[2:] for record in row.records}) == 1 for row in found.rows)


def test_recipes_and_backbones_have_tables_of_their_own(tmp_path: Path) -> None:
    fakes = [Fake(), Fake(recipe="quick"), Fake(backbone="clip_vit_b16")]
    assert len(summary.summarize([fake.write(tmp_path) for fake in fakes])) == 3


def test_random_weights_stand_beside_the_pretrained_ones(tmp_path: Path) -> None:
    rows = block(tmp_path, Fake("linear"), Fake("linear", random=True)).rows
    assert [row.label for row in rows] == ["linear (random weights)", "linear"]


def test_trials_are_left_out(tmp_path: Path) -> None:
    assert [row.label for row in block(tmp_path, Fake(), Fake("full", role="trial")).rows] == ["lora"]


def test_baselines_come_first_then_full_then_the_others_by_name(tmp_path: Path) -> None:
    rows = block(tmp_path, *(Fake(name) for name in ("ssf", "linear", "full", "bitfit", "majority"))).rows
    assert [(row.label, row.baseline) for row in rows] == [
        ("majority", True),
        ("linear", True),
        ("full", False),
        ("bitfit", False),
        ("ssf", False),
    ]


def test_the_papers_data_sets_come_in_its_order_and_phantoms_last(tmp_path: Path) -> None:
    names = ("phantom_ct", "derma", "busi", "covid_ct")
    found = block(tmp_path, *(Fake(dataset=name, synthetic=name == "phantom_ct") for name in names))
    assert found.datasets == ("covid_ct", "busi", "derma", "phantom_ct")


def test_averages_say_how_many_of_the_papers_six_they_hold(tmp_path: Path) -> None:
    found = block(tmp_path, *(Fake(dataset=name) for name in ("busi", "oct", "derma")))
    assert found.averages() == {"average (2 of 6)": ("busi", "oct")}


def test_the_papers_six_are_the_average(tmp_path: Path) -> None:
    found = block(tmp_path, *(Fake(dataset=name) for name in PAPER_DATASETS))
    assert found.averages() == {"average": PAPER_DATASETS}


def test_phantoms_are_averaged_apart(tmp_path: Path) -> None:
    drawn = [Fake(dataset=name, synthetic=True) for name in ("phantom_ct", "phantom_oct")]
    found = block(tmp_path, *drawn, Fake(dataset="busi"), Fake(dataset="oct"))
    assert found.averages()["average of 2 synthetic"] == ("phantom_ct", "phantom_oct")


def test_nothing_stands_in_for_a_missing_data_set(tmp_path: Path) -> None:
    found = row(tmp_path, Fake(dataset="busi"), Fake(dataset="oct", reason="out of memory"))
    assert found.estimate(["busi"]) is not None
    assert found.estimate(["busi", "oct"]) is None
    assert math.isnan(found.mean("accuracy", ["busi", "oct"]))


def test_a_failed_seed_is_noted(tmp_path: Path) -> None:
    found = row(tmp_path, Fake(seed=0), Fake(seed=1, reason="diverged"))
    assert found.replicates["busi"].notes == ("1 of 2 seeds failed",)


def test_a_copy_of_the_data_that_is_not_whole_is_noted() -> None:
    record = Fake().record()
    data = record.data.model_copy(update={"notes": ["Incomplete copy: 137 of 84484 images are here.", "Of 28 pixels."]})
    assert summary.notes(record.model_copy(update={"data": data})) == ["Incomplete copy: 137 of 84484 images are here."]


@pytest.mark.parametrize(
    ("fake", "untuned"),
    [
        (Fake(tuned=True), False),
        (Fake(tuned=False), True),
        (Fake(tuned=False, recipe="paper"), False),
        (Fake("majority", tuned=False), False),
    ],
)
def test_a_rate_that_was_not_tuned_is_marked(fake: Fake, *, untuned: bool) -> None:
    assert ("untuned" in summary.notes(fake.record())) == untuned


def test_the_share_is_of_the_backbone_without_head() -> None:
    assert summary.trainable_share(Fake(trainable=27_000).record()) == 27_000 / PARAMETERS


def test_the_point_is_the_records_and_the_interval_that_of_its_predictions(tmp_path: Path) -> None:
    result = Fake().write(tmp_path)
    entry = summary.Replicates((result,), ())
    assert entry.f1.value == pytest.approx(entry.mean("macro_f1"))
    assert entry.f1.interval == bootstrap.estimate([result.predictions("validation")]).interval


def test_records_published_without_predictions_have_scores_but_no_interval(tmp_path: Path) -> None:
    result = Fake().write(tmp_path)
    (result.folder / "predictions.npz").unlink()
    entry = summary.Replicates((result,), ())
    assert entry.f1.value == entry.mean("macro_f1")
    assert math.isnan(entry.f1.interval.low)
    assert entry.notes == ("predictions not stored: no interval",)


@pytest.mark.parametrize("content", [b"", b"spoilt"])
def test_predictions_that_cannot_be_read_are_damage(tmp_path: Path, content: bytes) -> None:
    result = Fake().write(tmp_path)
    (result.folder / "predictions.npz").write_bytes(content)
    assert result.damage.startswith("predictions.npz cannot be read (")


@pytest.mark.parametrize(
    ("mark", "behind", "byte"),
    [(b".npy", 24, 7), (b"PK\x01\x02", 8, 1), (b"PK\x01\x02", 10, 99)],
    ids=["deflated wrongly", "with a password", "of an unknown compression"],
)
def test_predictions_that_cannot_be_unpacked_are_damage(mark: bytes, behind: int, byte: int, tmp_path: Path) -> None:
    result = Fake().write(tmp_path)
    content = bytearray((result.folder / "predictions.npz").read_bytes())
    content[content.index(mark) + behind] = byte
    (result.folder / "predictions.npz").write_bytes(content)
    assert result.damage.startswith("predictions.npz cannot be read (")


def test_predictions_that_lack_the_rule_are_damage(tmp_path: Path) -> None:
    result = Fake().write(tmp_path)
    JobFolder(result.folder).write_predictions({"test/labels": np.zeros(3)})
    assert result.damage == "predictions.npz cannot be read (KeyError)"


def whole(store: Path, fake: Fake) -> Result:
    """A job whose record holds the digests of its files."""
    job = JobFolder(fake.write(store).folder)
    job.write_curve([{"step": 1.0, "loss": 0.5}])
    return Result(job.write_record(fake.record()), job.path)


@pytest.mark.parametrize(
    ("name", "content", "damage"),
    [
        ("predictions.npz", None, "predictions.npz is missing"),
        ("curve.csv", None, "curve.csv is missing"),
        ("curve.csv", b"step,loss\n1,0.4\n", "curve.csv was changed after its record was written"),
        ("predictions.npz", b"spoilt", "predictions.npz was changed after its record was written"),
    ],
)
def test_a_job_whose_files_are_not_whole_is_damaged_and_has_no_score(
    name: str, content: bytes | None, damage: str, tmp_path: Path
) -> None:
    good, bad = whole(tmp_path, Fake()), whole(tmp_path, Fake("full", skill=9.0))
    assert (good.damage, bad.damage) == ("", "")
    (bad.folder / name).write_bytes(content) if content else (bad.folder / name).unlink()
    bad = Result(bad.record, bad.folder)
    assert bad.damage == damage
    (found,) = summary.summarize([good, bad])
    assert [len(row.records) for row in found.rows] == [1, 1]
    full = next(row for row in found.rows if row.label == "full").replicates["busi"]
    assert (full.done, full.failed) == ((), (bad,))
    assert math.isnan(full.mean("macro_f1"))


def test_a_damaged_seed_is_noted(tmp_path: Path) -> None:
    results = [whole(tmp_path, Fake(seed=seed)) for seed in (0, 1)]
    (results[0].folder / "predictions.npz").unlink()
    (found,) = summary.summarize(results)
    assert found.rows[0].replicates["busi"].notes == ("1 of 2 seeds damaged",)


def test_a_study_without_validation_part_is_noted() -> None:
    record = Fake().record()
    last = Record.model_validate(record.model_dump() | {"choices": {"last": record.choices["last"]}})
    assert "no validation part: last step" in summary.notes(last)


def test_a_whole_study_makes_one_block(tmp_path: Path) -> None:
    results: list[Result] = study(tmp_path)
    (found,) = summary.summarize(results)
    assert len(found.results) == len(results)


def test_cuts_and_sizes_of_train_are_rows_of_their_own_in_order(tmp_path: Path) -> None:
    variants = [
        Variant("grouped"),
        WHOLE,
        Variant(share=0.05),
        Variant(share=0.25),
        Variant(shots=4),
        Variant(shots=16),
    ]
    rows = block(tmp_path, *(Fake(variant=variant) for variant in variants), Fake("linear", variant=variants[0])).rows
    assert [row.label for row in rows] == [
        "linear (grouped)",
        "lora (4 shots)",
        "lora (16 shots)",
        "lora (5% of train)",
        "lora (25% of train)",
        "lora",
        "lora (grouped)",
    ]


def test_seeds_that_train_on_other_images_may_share_a_test_set(tmp_path: Path) -> None:
    results = [Fake(seed=seed, variant=Variant(share=0.05)).write(tmp_path) for seed in (0, 1)]
    records = [one.record for one in results]
    other = records[1].model_copy(update={"data": records[1].data.model_copy(update={"fingerprint": "0" * 64})})
    (found,) = summary.summarize([results[0], Result(other, results[1].folder)])
    assert "test sets differ between seeds" not in found.rows[0].replicates["busi"].notes
