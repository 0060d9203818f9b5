"""Which method to use: within limits, with everything that makes it unsure in a sentence of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import peftbench
from peftbench.errors import RequestError
from peftbench.results.limits import Limits
from peftbench.results.recommendation import Recommendation, recommend, sentences
from tests.records import Fake

CLEAR, CLOSE, POOR = 4.0, 3.9, 0.5


def advised(store: Path, *fakes: Fake, limits: Limits | None = None) -> list[Recommendation]:
    return recommend([fake.write(store) for fake in fakes], store, limits)


def several(*skills: tuple[str, float], seeds: int = 1, dataset: str = "busi", trainable: int = 27_648) -> list[Fake]:
    return [
        Fake(method, dataset, seed, skill, trainable=trainable) for method, skill in skills for seed in range(seeds)
    ]


def test_the_first_tier_is_recommended_and_ties_are_called_noise(tmp_path: Path) -> None:
    (found,) = advised(tmp_path, *several(("lora", CLEAR), ("ssf", CLOSE), ("bitfit", POOR), seeds=3))
    assert set(found.not_beaten) == {"lora", "ssf"}
    best, other = found.not_beaten
    assert f"{best} has the highest macro F1" in found.sentence
    assert found.sentence.endswith(f"{other} is not shown to be worse.")
    text = " ".join(found.remarks)
    assert f"No trained model of {best} is stored, so there is no command that uses one." in text
    assert f"No difference was shown between {best} and {other}; it may be noise." in text
    assert "with 80% power" in text
    assert "Small test set: busi has 15 groups (patient)" in text


def test_a_method_that_beats_all_others_is_said_to(tmp_path: Path) -> None:
    (found,) = advised(tmp_path, *several(("lora", CLEAR), ("bitfit", POOR), seeds=3))
    assert found.sentence.endswith("and is shown to be better than every other method.")
    worse = found.methods[1]
    assert worse.method == "bitfit"
    assert worse.gap is not None
    assert 0 < worse.gap[1] < worse.gap[0] < worse.gap[2]
    assert worse.p < 0.05


def test_limits_exclude_methods_by_what_they_cost(tmp_path: Path) -> None:
    small = several(("bitfit", POOR), trainable=1000)
    fakes = [*several(("lora", CLEAR)), *small]
    (found,) = advised(tmp_path, *fakes, limits=Limits.read(share="0.5%"))
    assert found.not_beaten == ("bitfit",)
    assert {one.method: one.excluded for one in found.methods} == {
        "bitfit": "",
        "lora": "trains 1.02% (27,648 parameters)",
    }
    assert "Only bitfit can be compared: there is no other method." in found.remarks


def test_no_method_within_the_limits_is_one_plain_sentence(tmp_path: Path) -> None:
    results = [fake.write(tmp_path) for fake in several(("lora", CLEAR), ("bitfit", POOR))]
    every = Limits.read("100"), Limits.read(memory="1MB"), Limits.read(latency="1ms")
    found = [one for limits in every for one in recommend(results, tmp_path, limits)]
    assert {one.sentence for one in found} == {"Recommendation (busi): no method is within the limits."}
    assert {one.commands for one in found} == {()}
    assert [one.excluded for one in found[-1].methods] == ["has no recorded latency"] * 2


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"share": "much"}, "--max-share must be a share such as 0.5% or a number such as 100k, got 'much'"),
        ({"memory": "8 cows"}, "--max-memory"),
        ({"latency": "20"}, "20ms"),
    ],
)
def test_limits_that_cannot_be_read_are_refused(limit: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Limits.read(**limit)


def test_synthetic_data_are_never_recommended_from_without_a_warning(tmp_path: Path) -> None:
    fakes = [Fake(name, "phantom_ct", synthetic=True, skill=skill) for name, skill in (("lora", 4.0), ("bitfit", 0.5))]
    (found,) = advised(tmp_path, *fakes)
    assert found.sentence.startswith("Synthetic data (phantom_ct, one seed), no recommendation for real images: ")
    assert found.remarks[0] == "Synthetic data (phantom_ct): this recommends no method for real images."


def test_one_seed_failed_jobs_and_missing_cells_are_named(tmp_path: Path) -> None:
    both = [fake for name in ("busi", "covid_ct") for fake in several(("lora", CLEAR), ("ssf", CLOSE), dataset=name)]
    failed = Fake("gps", "busi", reason="out of memory")
    (found,) = advised(tmp_path, *both, *several(("bitfit", POOR)), failed)
    text = " ".join(found.remarks)
    assert "With one seed, the variance between seeds is not covered." in text
    assert "Left out, because jobs or predictions are missing: bitfit, gps." in text
    assert "Failed: gps on busi, seed 0: out of memory." in text
    assert "Scores are averaged over 2 data sets; the order may differ on one of them." in text
    assert re.search(r"First tier on covid_ct: .*lora", text)
    assert "with one seed the number of seeds needed cannot be estimated" in text


def test_real_and_synthetic_data_sets_are_recommended_from_apart(tmp_path: Path) -> None:
    fakes = several(("lora", CLEAR), ("bitfit", POOR))
    drawn = [Fake(name, "phantom_ct", synthetic=True, skill=skill) for name, skill in (("lora", 0.5), ("bitfit", 4.0))]
    real, synthetic = advised(tmp_path, *fakes, *drawn)
    assert (real.datasets, synthetic.datasets) == (("busi",), ("phantom_ct",))
    assert (real.not_beaten, synthetic.not_beaten) == (("lora",), ("bitfit",))


def test_bounds_are_no_choice_and_a_linear_probe_is_one(tmp_path: Path) -> None:
    (found,) = advised(tmp_path, *several(("majority", CLEAR), ("linear", POOR)), *several(("lora", CLOSE)))
    assert [one.method for one in found.methods if one.tier] == ["lora", "linear"]


def test_a_run_ends_with_a_sentence_only_where_two_trained_methods_can_be_compared(tmp_path: Path) -> None:
    alone = [fake.write(tmp_path) for fake in several(("majority", 0.0), ("linear", POOR), ("lora", CLEAR))]
    assert sentences(alone, tmp_path) == []
    (sentence,) = sentences([*alone, Fake("ssf", skill=CLOSE).write(tmp_path)], tmp_path)
    assert sentence.startswith("Recommendation (busi, one seed): lora has the highest macro F1")


def test_from_python_with_limits_as_text_and_as_json_without_nan(tmp_path: Path) -> None:
    for fake in several(("lora", CLEAR), ("bitfit", POOR)):
        fake.write(tmp_path)
    (found,) = peftbench.recommend(tmp_path, max_share="2%", max_memory="8GiB")
    assert found.not_beaten == ("lora",)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["methods"][1]["method"] == "bitfit"
    with pytest.raises(RequestError, match="cannot be compared"):
        peftbench.recommend(tmp_path, metric="recal")


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no finished job"):
        recommend([], tmp_path)
