"""The ten claims: they hold or fail only where a test or an interval shows it, and say what would decide them."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import peftbench
from peftbench.analysis.claims import BOTH_L1, CLAIMS, LAMBDAS, LINEAR_ONLY, TA, TD_L1, TD_L2, decide
from peftbench.analysis.evidence import Conclusion
from peftbench.cli.app import app
from tests.records import PARAMETERS, Fake

HIGH, SAME, LOW = 4.0, 3.9, 0.5


def conclusions(store: Path, *fakes: Fake) -> dict[int, Conclusion]:
    (found,) = decide([fake.write(store) for fake in fakes], store)
    return {claim.number: conclusion for claim, conclusion in found.conclusions}


def fakes(*skills: tuple[str, float], **others: Any) -> list[Fake]:
    return [
        Fake(label.partition("[")[0], seed=seed, skill=skill, label=label, **others)
        for label, skill in skills
        for seed in range(3)
    ]


def test_there_are_ten_claims_and_nothing_is_decided_from_nothing(tmp_path: Path) -> None:
    found = conclusions(tmp_path, *fakes(("lora", HIGH)))
    assert [claim.number for claim in CLAIMS] == list(range(1, 11))
    assert {number: one.verdict for number, one in found.items()} == dict.fromkeys(range(1, 11), "undecided")
    assert all(one.command and one.numbers for one in found.values())


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """Return the verb of a command, with the kind of an analysis, and the values that the program reads from it."""
    program, *words = shlex.split(command)
    assert program == "peftbench"
    group: Any = get_command(app)
    verb = ""
    while hasattr(group, "commands"):
        verb, group, words = f"{verb} {words[0]}".strip(), group.commands[words[0]], words[1:]
    return verb, group.make_context(verb, words).params


VERBS = {1: "analyze sparsity", 2: "analyze hybridity"}


@pytest.mark.parametrize("number", range(1, 11))
def test_the_command_that_would_decide_parses(number: int, tmp_path: Path) -> None:
    store = tmp_path / "a store"
    command = conclusions(store, *fakes(("lora", HIGH)))[number].command
    assert command
    for piece in command.split(" && "):
        verb, values = parsed(piece)
        assert verb == VERBS.get(number, "run")
        assert Path(values["store"]) == store


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7, 9, 10])
def test_what_is_missing_is_run_with_the_seeds_of_the_store(number: int, tmp_path: Path) -> None:
    command = conclusions(tmp_path, *fakes(("shpeft", HIGH), ("full", LOW)))[number].command
    assert list(parsed(command)[1]["seeds"]) == ["0,1,2"]


def test_what_is_decided_needs_no_command(tmp_path: Path) -> None:
    decided = conclusions(tmp_path, *fakes(("shpeft", HIGH), ("full", LOW)))[8]
    assert (decided.verdict, decided.command) == ("holds", "")


def test_the_hybrid_estimate_must_be_shown_to_beat_each_part(tmp_path: Path) -> None:
    parts = [(TA, LOW), (TD_L1, LOW), (TD_L2, LOW)]
    assert conclusions(tmp_path / "a", *fakes(("shpeft", HIGH), (BOTH_L1, HIGH), *parts))[5].verdict == "holds"
    unclear = conclusions(tmp_path / "b", *fakes(("shpeft", HIGH), (BOTH_L1, SAME), *parts[:2], (TD_L2, SAME)))[5]
    assert unclear.verdict == "undecided"
    assert any("no difference shown" in line for line in unclear.numbers)
    assert (
        conclusions(tmp_path / "c", *fakes(("shpeft", LOW), (BOTH_L1, HIGH), *parts[:2], (TD_L2, HIGH)))[5].verdict
        == "fails"
    )
    missing = conclusions(tmp_path / "d", *fakes(("shpeft", HIGH), *parts))[5]
    assert missing.verdict == "undecided"
    assert f"Missing: {BOTH_L1}." in missing.numbers


def test_lambda_must_be_best_and_robust(tmp_path: Path) -> None:
    worse = conclusions(tmp_path / "a", *fakes(("shpeft", HIGH), *((label, LOW) for label in LAMBDAS)))[6]
    assert worse.verdict == "fails"  # best, but the choice matters
    same = conclusions(tmp_path / "b", *fakes(("shpeft", HIGH), *((label, HIGH) for label in LAMBDAS)))[6]
    assert same.verdict == "undecided"  # not shown to be best
    assert "0,1,2,3,4,5" in same.command


def test_all_tensors_against_linear_layers(tmp_path: Path) -> None:
    assert conclusions(tmp_path / "a", *fakes(("shpeft", HIGH), (LINEAR_ONLY, LOW)))[7].verdict == "holds"
    assert conclusions(tmp_path / "b", *fakes(("shpeft", LOW), (LINEAR_ONLY, HIGH)))[7].verdict == "fails"


def test_one_seed_decides_nothing_about_methods(tmp_path: Path) -> None:
    pair = (Fake("shpeft", skill=HIGH), Fake("shpeft", label=LINEAR_ONLY, skill=LOW))
    found = conclusions(tmp_path, *pair)[7]
    assert found.verdict == "undecided"
    assert found.numbers[0].endswith("better, one seed: no verdict on the methods")
    assert "--seeds 0,1,2 " in found.command


def test_a_tiny_mask_must_beat_a_full_model_that_was_tuned_equally(tmp_path: Path) -> None:
    tiny = [Fake("shpeft", seed=seed, skill=HIGH, target=round(1e-4 * PARAMETERS)) for seed in range(3)]
    full = [Fake("full", seed=seed, skill=LOW, trainable=PARAMETERS) for seed in range(3)]
    assert conclusions(tmp_path / "a", *tiny, *full)[4].verdict == "holds"
    untuned = [Fake("full", seed=seed, skill=LOW, trainable=PARAMETERS, tuned=False) for seed in range(3)]
    found = conclusions(tmp_path / "b", *tiny, *untuned)[4]
    assert found.verdict == "undecided"
    assert found.numbers[-1].startswith("Not tuned equally: 2 trials of shpeft, 0 of full.")


def test_best_on_average_fails_with_one_better_rival_and_needs_all_to_hold(tmp_path: Path) -> None:
    assert conclusions(tmp_path / "a", *fakes(("shpeft", LOW), ("lora", HIGH)))[3].verdict == "fails"
    found = conclusions(tmp_path / "b", *fakes(("shpeft", HIGH), ("lora", LOW)))[3]
    assert found.verdict == "undecided"
    assert any(line.startswith("Missing at their own size: full, linear, ") for line in found.numbers)


def test_comparable_to_task_specific_models_needs_both_data_sets(tmp_path: Path) -> None:
    good = [fake for name in ("chaoyang", "covid_ct") for fake in fakes(("shpeft", HIGH), dataset=name)]
    assert conclusions(tmp_path / "a", *good)[10].verdict == "holds"
    assert conclusions(tmp_path / "b", *fakes(("shpeft", LOW), dataset="chaoyang"))[10].verdict == "fails"
    assert conclusions(tmp_path / "c", *fakes(("shpeft", HIGH), dataset="chaoyang"))[10].verdict == "undecided"


def analyzed(store: Path, name: str, rows: list[dict[str, Any]]) -> None:
    own = {"backbone": "mini", "image_size": 64, "recipe": "standard", "method": "full"}
    (store / "analysis").mkdir(parents=True, exist_ok=True)
    with (store / "analysis" / f"{name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*own, *rows[0]])
        table.writeheader()
        table.writerows({**own, **row} for row in rows)


@pytest.mark.parametrize(("word", "verdict"), [("yes", "holds"), ("no", "fails"), ("undecided", "undecided")])
def test_sparsity_rests_on_the_interval_of_the_analysis(word: str, verdict: str, tmp_path: Path) -> None:
    kept = {"kept": 0.97, "kept_low": 0.955, "kept_high": 0.99, "verdict": word, "seeds": 3}
    analyzed(tmp_path, "sparsity_kept", [{"dataset": "busi", "order": "moved", "share": 0.1, **kept}])
    found = conclusions(tmp_path, *fakes(("full", HIGH)))[1]
    assert found.verdict == verdict
    assert "10% of the changes keep 97.0% of full tuning's macro F1 [95.5%, 99.0%]" in found.numbers[0]


def overlaps(tasks: float, ceiling: float) -> list[dict[str, Any]]:
    names = ("busi", "chest_xray", "covid_ct")
    pairs = [(one, other) for one in names for other in names if one <= other]
    return [
        {
            "dataset": one,
            "other": other,
            "share": share,
            "overlap": (ceiling if one == other else tasks) + noise,
            "chance": share,
        }
        for share in (0.05, 0.01, 0.001, 0.0005)
        for noise, (one, other) in zip((0.01, 0.02, 0.0, 0.0, 0.01, 0.02), pairs, strict=True)
    ]


@pytest.mark.parametrize(
    ("tasks", "ceiling", "verdict"), [(0.2, 0.6, "holds"), (0.7, 0.9, "fails"), (0.3, 0.3, "undecided")]
)
def test_hybridity_rests_on_chance_a_half_and_another_seed(
    tasks: float, ceiling: float, verdict: str, tmp_path: Path
) -> None:
    analyzed(tmp_path, "hybridity", overlaps(tasks, ceiling))
    jobs = [fake for name in ("busi", "chest_xray", "covid_ct") for fake in fakes(("full", HIGH), dataset=name)]
    found = conclusions(tmp_path, *jobs)[2]
    assert found.verdict == verdict
    assert len(found.numbers) == 4


def test_real_data_sets_count_before_synthetic_ones(tmp_path: Path) -> None:
    drawn = fakes(("shpeft", LOW), (LINEAR_ONLY, HIGH), dataset="phantom_ct", synthetic=True)
    real = fakes(("shpeft", HIGH), (LINEAR_ONLY, LOW))
    assert conclusions(tmp_path, *drawn, *real)[7].verdict == "holds"


def test_operations_are_compared_on_each_data_set_as_heads_have_different_sizes(tmp_path: Path) -> None:
    def study(own: float) -> list[Fake]:
        sizes = {"busi": 3e8 + 384, "covid_ct": 3e8}
        equal = [Fake(method, name, flops=size) for name, size in sizes.items() for method in ("full", "shpeft")]
        return [*equal[:-1], Fake("shpeft", "covid_ct", flops=own)]

    assert conclusions(tmp_path / "same", *study(3e8))[9].verdict == "holds"
    assert conclusions(tmp_path / "more", *study(3e8 + 1))[9].verdict == "fails"


def test_python_decides_as_the_command_does(tmp_path: Path) -> None:
    for fake in fakes(("lora", HIGH)):
        fake.write(tmp_path)
    (setting,) = peftbench.claims(tmp_path)
    assert [claim.number for claim, _ in setting.conclusions] == list(range(1, 11))
    assert {conclusion.verdict for _, conclusion in setting.conclusions} <= {"holds", "fails", "undecided"}
