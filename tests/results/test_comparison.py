"""Pairs, verdicts and tiers of a store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from peftbench.core.contract import Result
from peftbench.errors import RequestError
from peftbench.results.comparison import compare, frame, rank, rank_remarks
from peftbench.statistics.paired import Comparison
from tests.records import Fake

CLEAR, CLOSE, POOR = 4.0, 3.9, 0.5


def jobs(*fakes: tuple[str, float], seeds: int = 1, dataset: str = "busi") -> list[Fake]:
    return [
        Fake(method=name, skill=skill, seed=seed, dataset=dataset) for name, skill in fakes for seed in range(seeds)
    ]


def study(store: Path, fakes: list[Fake]) -> list[Result]:
    return [fake.write(store) for fake in fakes]


def test_every_pair_has_a_difference_and_ties_share_a_tier(tmp_path: Path) -> None:
    (found,) = compare(study(tmp_path, jobs(("lora", CLEAR), ("ssf", CLOSE), ("bitfit", POOR))))
    assert {(pair.method, pair.other) for pair in found.pairs} == {
        ("lora", "ssf"),
        ("lora", "bitfit"),
        ("ssf", "bitfit"),
    }
    assert found.tiers == {"lora": 1, "ssf": 1, "bitfit": 2}
    verdicts = {(pair.method, pair.other): pair.verdict for pair in found.pairs}
    assert verdicts["lora", "bitfit"] == "better"
    assert verdicts["lora", "ssf"] == "no difference shown"
    assert 0 < found.detectable < 0.5


def test_the_table_of_pairs_is_a_data_frame(tmp_path: Path) -> None:
    table = frame(compare(study(tmp_path, jobs(("lora", CLEAR), ("bitfit", POOR), seeds=3))))
    (row,) = table.to_dict("records")
    assert (row["dataset"], row["method"], row["other"], row["verdict"]) == ("busi", "lora", "bitfit", "better")
    assert (row["seeds"], row["groups"], row["metric"]) == (3, 15, "macro_f1")
    assert row["low"] < row["difference"] < row["high"]
    assert row["p"] <= row["p_holm"] < 0.05


def test_all_against_one_adjusts_for_fewer_comparisons(tmp_path: Path) -> None:
    results = study(tmp_path, jobs(("lora", CLEAR), ("ssf", CLOSE), ("bitfit", POOR), ("full", CLOSE)))
    (found,) = compare(results, against="lora")
    assert {pair.other for pair in found.pairs} == {"lora"}
    assert {pair.method for pair in found.pairs} == {"ssf", "bitfit", "full"}
    (every,) = compare(results)
    p = {pair.p for pair in every.pairs if {pair.method, pair.other} == {"lora", "bitfit"}}
    assert next(pair.p for pair in found.pairs if pair.method == "bitfit") <= min(p)


def test_the_majority_class_is_compared_only_when_it_is_named(tmp_path: Path) -> None:
    results = study(tmp_path, jobs(("lora", CLEAR), ("majority", 0.0), ("linear", CLOSE)))
    (found,) = compare(results)
    assert set(found.tiers) == {"lora", "linear"}
    (named,) = compare(results, against="majority")
    assert {pair.other for pair in named.pairs} == {"majority"}


def test_averages_need_every_data_set_and_name_what_is_left_out(tmp_path: Path) -> None:
    both = [fake for name in ("busi", "covid_ct") for fake in jobs(("lora", CLEAR), ("bitfit", POOR), dataset=name)]
    *_, average = compare(study(tmp_path, [*both, *jobs(("ssf", CLOSE))]))
    assert set(average.datasets) == {"busi", "covid_ct"}
    assert set(average.tiers) == {"lora", "bitfit"}
    assert average.missing == ("ssf",)


def test_seeds_with_test_images_of_their_own_do_not_count_as_one_test_set_seen_three_times(tmp_path: Path) -> None:
    def compared(store: Path, *, own: bool) -> Comparison:
        fakes = [replace(fake, own_test=own) for fake in jobs(("lora", CLEAR), ("bitfit", POOR), seeds=3)]
        ((pair,),) = (found.pairs for found in compare(study(store, fakes)))
        return pair.found

    shared, own = compared(tmp_path / "shared", own=False), compared(tmp_path / "own", own=True)
    assert own.difference == pytest.approx(shared.difference)
    assert own.error > 1.2 * shared.error  # labels and group numbers are equal, the patients are not


def test_only_seeds_in_common_are_paired(tmp_path: Path) -> None:
    results = study(tmp_path, [*jobs(("lora", CLEAR), seeds=3), *jobs(("bitfit", POOR), seeds=2)])
    (found,) = compare(results)
    assert found.seeds == 2


def test_lower_is_better_for_losses_and_errors(tmp_path: Path) -> None:
    results = study(tmp_path, jobs(("lora", CLEAR), ("bitfit", POOR)))
    (found,) = compare(results, "brier_score_loss")
    verdicts = {pair.method: pair.verdict for pair in found.pairs}
    assert verdicts == {"lora": "better"}
    assert found.tiers["lora"] == 1


def test_unknown_metrics_and_methods_are_refused(tmp_path: Path) -> None:
    results = study(tmp_path, jobs(("lora", CLEAR), ("bitfit", POOR)))
    with pytest.raises(RequestError, match=r"--metric nothing: .*choose one of .*macro_f1"):
        compare(results, "nothing")
    with pytest.raises(RequestError, match=r"--against gps: no such method in this store; it has bitfit, lora"):
        compare(results, against="gps")


def test_ranks_over_data_sets_say_how_little_they_can_show(tmp_path: Path) -> None:
    sets = ("busi", "covid_ct", "chest_xray")
    fakes = [fake for name in sets for fake in jobs(("lora", CLEAR), ("ssf", 2.0), ("bitfit", POOR), dataset=name)]
    *alone, average = compare(study(tmp_path, fakes))
    assert [rank(one) for one in alone] == [None] * 3
    found = rank(average)
    assert found is not None
    assert dict(zip(found.methods, found.average, strict=True)) == {"lora": 1.0, "ssf": 2.0, "bitfit": 3.0}
    text = " ".join(rank_remarks(found))
    assert "Friedman's test over 3 data sets: p 0.050" in text
    assert "no pair differs; with 3 data sets its p-value cannot be below 0.25." in text
