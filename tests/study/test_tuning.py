"""The rule by which every method spends its trials, and what a study makes of their scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbench.core.record import Record
from peftbench.core.spec import Job
from peftbench.errors import RequestError
from peftbench.results.store import Store
from peftbench.study import resolve as studies_
from peftbench.study.tuning import Draft, Trial, best, edge, first_round, next_trial, rounds
from tests import records, studies

BOTH = ("adamw", "sgd")
Score = Callable[[Trial], float | None]


def search(score: Score, budget: int, optimizers: tuple[str, ...] = BOTH) -> dict[Trial, float | None]:
    scores = {trial: score(trial) for trial in first_round(optimizers, budget)}
    while len(scores) < budget:
        trial = next_trial(scores)
        assert trial not in scores
        scores[trial] = score(trial)
    return scores


def peak(optimizer: str, exponent: float) -> Score:
    """A score that is best for one optimizer at 10 ** exponent and falls off on both sides."""

    def score(trial: Trial) -> float:
        return -abs(math.log10(trial.lr) - exponent) - 20 * (trial.optimizer != optimizer)

    return score


def test_eight_trials_are_three_rates_of_each_optimizer_and_two_for_the_better_one() -> None:
    assert first_round(BOTH, 8) == [
        *(Trial("adamw", rate) for rate in (1e-4, 1e-3, 1e-2)),
        *(Trial("sgd", rate) for rate in (1e-3, 1e-2, 1e-1)),
    ]


@pytest.mark.parametrize(
    ("budget", "optimizers", "counts"),
    [(2, BOTH, [2]), (3, BOTH, [3]), (4, BOTH, [2, 2]), (12, BOTH, [4, 4]), (100, BOTH, [6, 6]), (4, ("sgd",), [3])],
)
def test_the_first_round_is_shared_equally(budget: int, optimizers: tuple[str, ...], counts: list[int]) -> None:
    trials = first_round(optimizers, budget)
    assert [sum(trial.optimizer == name for trial in trials) for name in optimizers[: len(counts)]] == counts
    assert len(trials) == sum(counts)


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize("exponent", [-5.2, -4, -3, -2.3, -1, 0.2])
def test_a_peak_within_a_decade_of_the_first_rates_ends_inside(optimizer: str, exponent: float) -> None:
    first = [math.log10(trial.lr) for trial in first_round(BOTH, 8) if trial.optimizer == optimizer]
    scores = search(peak(optimizer, exponent), 8)
    assert len(scores) == 8
    assert best(scores).optimizer == optimizer
    if min(first) - 0.4 <= exponent <= max(first) + 0.4:
        assert edge(scores) == ""
        assert abs(math.log10(best(scores).lr) - exponent) <= 0.5


def test_a_peak_far_outside_is_stated_to_be_at_the_edge() -> None:
    assert edge(search(peak("adamw", -9), 8)) == "lowest"
    assert edge(search(peak("sgd", 5), 8)) == "highest"


def test_the_better_neighbor_decides_where_to_look_next() -> None:
    scores = {Trial("sgd", 1e-3): 0.5, Trial("sgd", 1e-2): 0.9, Trial("sgd", 1e-1): 0.8}
    assert next_trial(scores) == Trial("sgd", 0.0316)
    assert next_trial(scores | {Trial("sgd", 0.0316): 0.7}) == Trial("sgd", 0.00316)


def test_fields_are_tried_at_the_best_rate_once_it_lies_inside() -> None:
    decay, drop = ("layer_decay", 0.75), ("drop_path", 0.1)
    scores: dict[Trial, float | None] = {Trial("sgd", 1e-3): 0.5, Trial("sgd", 1e-2): 0.7, Trial("sgd", 1e-1): 0.8}
    assert next_trial(scores, (decay, drop)) == Trial("sgd", 1.0)
    scores |= {Trial("sgd", 1.0): 0.1}
    assert next_trial(scores, (decay, drop)) == Trial("sgd", 0.1, (decay,))
    assert next_trial(scores | {Trial("sgd", 0.1, (decay,)): 0.7}, (decay, drop)) == Trial("sgd", 0.1, (drop,))
    scores |= {Trial("sgd", 0.1, (decay,)): 0.9}
    assert next_trial(scores, (decay, drop)) == Trial("sgd", 0.1, (decay, drop))
    scores |= {Trial("sgd", 0.1, (decay, drop)): 0.9}
    assert best(scores) == Trial("sgd", 0.1, (decay,))
    assert next_trial(scores, (decay, drop)) == Trial("sgd", 0.0316, (decay,))


def test_a_rate_that_diverged_bounds_the_search() -> None:
    scores: dict[Trial, float | None] = {Trial("sgd", 1e-3): 0.5, Trial("sgd", 1e-2): 0.9, Trial("sgd", 1e-1): None}
    assert (best(scores), edge(scores)) == (Trial("sgd", 1e-2), "")
    assert next_trial(scores) == Trial("sgd", 0.00316)


def test_ties_go_to_the_first_optimizer_and_the_lower_rate() -> None:
    assert best(dict.fromkeys(first_round(BOTH, 8), 0.5)) == Trial("adamw", 1e-4)
    assert best(dict.fromkeys(first_round(BOTH, 8), None)) == Trial("adamw", 1e-4)


@given(st.integers(2, 40), st.sampled_from([BOTH, ("adamw",), ("sgd",)]), st.integers(0, 10))
def test_every_budget_is_spent_on_different_trials(budget: int, optimizers: tuple[str, ...], seed: int) -> None:
    scores = search(lambda trial: hash((trial, seed)) % 7 / 7, budget, optimizers)
    assert len(scores) == budget


# --- in a study ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    studies.draw(folder / "images", 8)
    return folder


def drafts(home: Path, **changes: object) -> tuple[Draft, ...]:
    return studies_.resolve(studies.small(home / "images", **changes), studies.places(home)).drafts


def record_with(score: float | None, step: int = 8) -> Record:
    fake = records.Fake().record()
    if score is None:
        return fake.model_copy(update={"status": "failed", "choices": {}})
    chosen = fake.choices["validation"].model_copy(update={"step": step, "val": {"macro_f1": score}, "test": {}})
    return fake.model_copy(update={"choices": {"validation": chosen, "last": chosen}})


def write(store: Store, job: Job, record: Record) -> None:
    store.job(job.id).path.mkdir(parents=True, exist_ok=True)
    store.job(job.id).write_record(record.model_copy(update={"id": job.id}))


def run(drafts: tuple[Draft, ...], store: Store, score: Score, step: int = 8) -> list[int]:
    """Write a record for every trial; the number of trials in each round."""
    sizes = []
    for jobs in rounds(drafts, store):
        sizes.append(len(jobs))
        for job in jobs:
            write(store, job, record_with(score(Trial(job.recipe.optimizer, job.recipe.lr)), step))
    return sizes


def test_rounds_of_all_methods_run_side_by_side(home: Path, tmp_path: Path) -> None:
    found = drafts(home, methods=("linear", "bitfit"), recipe="standard", tune=8)
    assert run(found, Store(tmp_path), peak("sgd", -1.7)) == [12, 2, 2]
    for draft in found:
        final = draft.final(Store(tmp_path))
        assert (final.role, final.recipe.optimizer, final.recipe.lr) == ("final", "sgd", 0.0178)
        assert (final.recipe.momentum, final.recipe.weight_decay) == (0.9, 0.0)
        assert final.tuning
        assert final.tuning["grid"] == [1e-4, 1e-3, 1e-2, 1e-3, 1e-2, 1e-1, 0.0316, 0.0178]
        assert final.tuning["optimizers"] == ["adamw"] * 3 + ["sgd"] * 5
        assert (final.tuning["chosen"], final.tuning["edge"], len(set(final.tuning["trials"]))) == (0.0178, "", 8)


def test_full_tuning_spends_its_trials_on_decay_and_stochastic_depth_too(home: Path, tmp_path: Path) -> None:
    (draft,) = drafts(home, methods=("full",), recipe="standard", tune=8)

    def score(job: Job) -> float:
        return float((job.recipe.lr == 1e-3) + (job.fields["layer_decay"] == 0.75) - (job.fields["drop_path"] == 0.1))

    for jobs in rounds((draft,), Store(tmp_path)):
        for job in jobs:
            write(Store(tmp_path), job, record_with(score(job)))
    final = draft.final(Store(tmp_path))
    assert (final.recipe.lr, final.fields["layer_decay"], final.fields["drop_path"]) == (1e-3, 0.75, 0.0)
    assert final.label == "full"
    assert final.tuning
    assert final.tuning["settings"][6:] == [{"layer_decay": 0.75}, {"layer_decay": 0.75, "drop_path": 0.1}]


def test_a_field_that_the_user_sets_is_not_tuned(home: Path) -> None:
    (draft,) = drafts(home, methods=("full[layer_decay=0.65,drop_path=0.2]",), recipe="standard", tune=8)
    assert draft.search
    assert draft.search.alternatives == ()


def test_an_interrupted_search_goes_on_where_it_was(home: Path, tmp_path: Path) -> None:
    (draft,) = drafts(home, tune=6)
    first = next(rounds((draft,), Store(tmp_path)))
    for job in first[:2]:
        write(Store(tmp_path), job, record_with(0.5))
    assert [job.id for job in next(rounds((draft,), Store(tmp_path)))] == [job.id for job in first[2:]]


def test_a_trial_that_failed_before_is_run_again_once(home: Path, tmp_path: Path) -> None:
    (draft,) = drafts(home, tune=2)
    assert run((draft,), Store(tmp_path), lambda _: None) == [2]
    again = rounds((draft,), Store(tmp_path))
    assert len(next(again)) == 2
    assert next(again, None) is None


def test_a_tuned_job_is_the_job_that_was_given_that_rate(home: Path, tmp_path: Path) -> None:
    (draft,) = drafts(home, tune=3)
    run((draft,), Store(tmp_path), peak("adamw", -3))
    (given_rate,) = drafts(home, lr=1e-3)
    assert draft.final(Store(tmp_path)).id == given_rate.job.id


def test_an_optimizer_that_the_user_sets_is_the_only_one_tried(home: Path) -> None:
    for text in ("standard[optimizer=sgd]", "standard[optimiser=sgd]"):
        (draft,) = drafts(home, recipe=text, tune=8)
        assert draft.search
        assert {trial.optimizer for trial in draft.search.first()} == {"sgd"}
        assert draft.search.recipes["sgd"].weight_decay == 0.0


def test_what_the_user_states_holds_for_every_optimizer(home: Path) -> None:
    (draft,) = drafts(home, recipe="standard[weight_decay=0.05,momentum=0.5]", tune=8)
    assert draft.search
    assert {recipe.weight_decay for recipe in draft.search.recipes.values()} == {0.05}
    assert draft.search.recipes["sgd"].momentum == 0.5


def test_one_trial_is_no_choice() -> None:
    with pytest.raises(RequestError, match="--tune must be 0 or at least 2, got 1"):
        studies.study(tune=1)


def test_a_rate_in_brackets_is_not_tuned(home: Path) -> None:
    (draft,) = drafts(home, recipe="standard[lr=0.01]")
    assert (draft.search, draft.job.recipe.lr) == (None, 0.01)
    with pytest.raises(RequestError, match="--tune and a learning rate exclude each other"):
        drafts(home, recipe="standard[lr=0.01]", tune=4)


def test_a_refit_trains_on_validation_images_to_the_step_that_the_trial_chose(home: Path, tmp_path: Path) -> None:
    images = studies_.resolve(studies.small(home / "images", refit=True), studies.places(home))
    (draft,) = images.drafts
    data = {one.fingerprint: one for one in images.data}
    assert draft.search
    trained, held_out = data[draft.job.fingerprint], data[draft.search.job.fingerprint]
    assert {*trained.names["train"]} == {*held_out.names["train"], *held_out.names["val"]}
    assert trained.names["test"] == held_out.names["test"]
    assert run((draft,), Store(tmp_path), lambda _: 0.5, step=6) == [1]
    final = draft.final(Store(tmp_path))
    assert (final.recipe.selection, final.recipe.stop, final.recipe.steps) == ("last", 6, 8)
    assert final.tuning
    assert final.tuning["refit"] is True


def test_the_paper_s_recipe_is_tuned_on_a_held_out_part_and_trained_on_all_of_train(home: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        studies.draw(tmp_path / "given" / part, 10, seed=len(part))
    asked = studies.small(tmp_path / "given", recipe="paper", tune=3)
    resolved = studies_.resolve(asked, studies.places(home))
    (draft,) = resolved.drafts
    data = {one.fingerprint: one for one in resolved.data}
    assert draft.search
    assert data[draft.job.fingerprint].sizes == {"train": 30, "val": 0, "test": 30}
    assert data[draft.search.job.fingerprint].sizes["val"] > 0
    run((draft,), Store(tmp_path), peak("sgd", -2))
    untuned = studies_.resolve(replace(asked, tune=0, lr=1e-2), studies.places(home)).drafts[0].job
    assert draft.final(Store(tmp_path)).id == untuned.id
