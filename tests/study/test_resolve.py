"""From a study to its jobs: names, budgets, baselines, tuning, and study.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from timm.models.vision_transformer import VisionTransformer

from peftbench.benchmarks.forecast import outline
from peftbench.core import catalogue, official_recipes
from peftbench.core.constants import PAPER_DATASETS
from peftbench.core.recipe import RECIPES
from peftbench.core.registry import registry
from peftbench.core.spec import Job, Places, load_study
from peftbench.data import availability
from peftbench.data.availability import open_dataset
from peftbench.data.pixel_cache import Data
from peftbench.errors import MissingDataError, RequestError, SplitError, UnknownNameError, WeightsError
from peftbench.results.store import Store
from peftbench.study import defaults, images
from peftbench.study import resolve as studies_
from peftbench.study.resolve import Resolved
from peftbench.study.tuning import Trial
from tests import studies

TOTAL = 2_719_296  # weights of mini, no head


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and caches that the tests of this file share."""
    return studies.home(tmp_path_factory, 8)


def resolve(home: Path, **changes: object) -> Resolved:
    return studies_.resolve(studies.small(home / "images", **changes), studies.places(home))


def described(resolved: Resolved) -> list[str]:
    jobs = [draft.job for draft in resolved.drafts]
    return [f"{job.label}{'@random' * job.backbone.endswith('@random')}" for job in jobs]


# --- data sets -------------------------------------------------------------------------------------------------------


def complete(tmp_path: Path, *datasets: str) -> tuple[tuple[str, ...], str]:
    study, lines = defaults.complete(studies.study(methods=("linear",), datasets=datasets), studies.places(tmp_path))
    return study.datasets, " ".join(lines)


def phantoms() -> tuple[str, ...]:
    return tuple(name for name in registry("datasets").names() if name.startswith("phantom_"))


def test_all_without_data_is_the_phantoms_with_a_note(tmp_path: Path) -> None:
    names, lines = complete(tmp_path, "all")
    assert names == phantoms()
    assert f"None of the paper's six data sets is complete in {tmp_path / 'data'}" in lines


def test_all_is_what_is_here_and_names_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "is_complete", lambda name, _: name in {"busi", "covid_ct"})
    names, lines = complete(tmp_path, "all")
    assert names == ("covid_ct", "busi")
    assert "2 of the paper's 6" in lines
    assert "chest_xray" in lines
    assert "peftbench list datasets" in lines  # how to get them


def test_paper_means_the_six_even_if_some_are_missing(tmp_path: Path) -> None:
    assert complete(tmp_path, "paper")[0] == PAPER_DATASETS


def test_words_and_names_mix_without_doubles(tmp_path: Path) -> None:
    assert complete(tmp_path, "phantoms", "busi", "phantoms", "busi")[0] == (*phantoms(), "busi")


def test_a_missing_set_is_refused_with_the_way_to_get_it(home: Path) -> None:
    with pytest.raises(MissingDataError, match=r"busi does not exist\. .+"):
        resolve(home, datasets=("busi",))


def test_a_path_is_a_folder_of_images(home: Path) -> None:
    by_word, by_path = (resolve(home, datasets=(text,)) for text in (f"folder:{home}/images", f"{home}/images"))
    assert [draft.job.id for draft in by_word.drafts] == [draft.job.id for draft in by_path.drafts]


@pytest.mark.parametrize("text", ["folder", "busi:here", "busi@random", "phantom_oct[side=3]"])
def test_a_data_set_takes_nothing_that_it_does_not_know(text: str) -> None:
    with pytest.raises(RequestError, match=r"cannot parse .*; write "):
        open_dataset(text)


def test_a_class_without_a_training_image_is_refused(tmp_path: Path) -> None:
    studies.draw(tmp_path / "images" / "train", 3)
    studies.draw(tmp_path / "images" / "test", 3)
    (tmp_path / "images" / "train" / "rows").rename(tmp_path / "elsewhere")
    with pytest.raises(SplitError, match="rows"):
        resolve(tmp_path)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_baselines_are_added_once(home: Path) -> None:
    assert described(resolve(home, methods=("bitfit",), baselines=True)) == [
        "majority",
        "knn",
        "linear",
        "linear@random",
        "bitfit",
    ]
    assert described(resolve(home, methods=("linear", "majority", "linear"), baselines=True)) == [
        "majority",
        "knn",
        "linear",
        "linear@random",
    ]


def test_no_baselines_where_none_are_wanted(home: Path) -> None:
    assert described(resolve(home, methods=("bitfit",))) == ["bitfit"]


def test_the_random_baseline_has_weights_of_the_job_s_seed(home: Path) -> None:
    drafts = resolve(home, baselines=True, seeds=(0, 5)).drafts
    digests = [draft.job.digest for draft in drafts if draft.job.backbone == "mini@random"]
    assert digests == ["random:0", "random:5"]


def test_values_that_are_given_twice_count_once(home: Path) -> None:
    twice = resolve(home, methods=("lora", "lora[r=8]"), seeds=(0, 0), datasets=(f"folder:{home}/images",) * 2)
    assert described(twice) == ["lora"]


def test_two_budgets_that_reach_one_size_are_one_job(home: Path) -> None:
    drafts = resolve(home, methods=("lora",), ratios=("1%", "27k", "2%")).drafts  # 4,608 weights a rank
    assert [(draft.job.fields["r"], draft.targets) for draft in drafts] == [(6, (27_193, 27_000)), (12, (54_386,))]


def test_images_that_are_left_out_are_noted_once(tmp_path: Path) -> None:
    studies.draw(tmp_path / "images", 8)
    next((tmp_path / "images").rglob("*.png")).with_suffix(".heic").touch()
    shown = [line for line in resolve(tmp_path, seeds=(0, 1)).notes if "left out" in line]
    assert len(shown) == 1
    assert "Files left out because they are not image files: 1" in shown[0]


def test_a_size_that_the_budgets_replace_is_noted(home: Path) -> None:
    asked = ("lora[r=4]", "shpeft[lam=0.5]")
    assert [line for line in resolve(home, methods=asked, ratios=("1%",)).notes if "ignored" in line] == [
        "lora[r=4]: --ratios sets r, so the r given here is ignored."
    ]
    assert not any("ignored" in line for line in resolve(home, methods=asked).notes)


def test_a_budget_below_the_least_size_runs_once_at_the_floor(home: Path) -> None:
    (draft,) = resolve(home, methods=("lora",), ratios=("10", "100", "1000")).drafts
    assert (draft.job.fields["r"], draft.job.edge, draft.targets) == (1, "floor", (10, 100, 1000))


def test_a_ratio_is_a_share_of_the_backbone_without_its_head(home: Path) -> None:
    (draft,) = resolve(home, methods=("shpeft",), ratios=("0.5%",)).drafts
    assert draft.targets == (round(0.005 * TOTAL),)
    assert draft.job.fields["ratio"] == 0.005


def test_a_target_changes_no_id(home: Path) -> None:
    (by_default,) = resolve(home, methods=("shpeft",)).drafts
    (by_ratio,) = resolve(home, methods=("shpeft",), ratios=("1%",)).drafts
    assert by_default.job.id == by_ratio.job.id


def test_methods_without_a_size_run_once_whatever_the_budgets(home: Path) -> None:
    assert described(resolve(home, methods=("bitfit", "full"), ratios=("1%", "2%"))) == ["bitfit", "full"]


# --- identity --------------------------------------------------------------------------------------------------------


def job(home: Path, **changes: object) -> Job:
    return resolve(home, **changes).drafts[0].job


@pytest.fixture(scope="module")
def linear(home: Path) -> Job:
    return job(home)


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": (1,)},
        {"lr": 0.5},
        {"steps": 9},
        {"batch": 9},
        {"precision": "bf16"},
        {"threads": 2},
        {"backbone": "mini@random"},
        {"image_size": 32},
        {"methods": ("bitfit",)},
        {"recipe": "standard", "tune": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_result_decides_the_id(change: dict[str, object], linear: Job, home: Path) -> None:
    assert job(home, **change).id != linear.id


def test_where_it_runs_and_what_is_at_its_default_is_no_part_of_an_id(home: Path, tmp_path: Path) -> None:
    elsewhere = replace(studies.places(home), store=tmp_path / "other", cache=tmp_path / "cache")
    asked = studies.small(home / "images", methods=("lora[r=8,dropout=0]",))
    (there,) = studies.jobs(asked, elsewhere)
    assert there.id == job(home, methods=("lora",)).id


def test_fields_at_their_default_are_left_out_of_the_identity(home: Path) -> None:
    assert job(home, methods=("lora",)).identity()["method"]["fields"] == {}
    assert job(home, methods=("lora[r=4]",)).identity()["method"]["fields"] == {"r": 4}


# --- tuning ----------------------------------------------------------------------------------------------------------


def test_every_method_gets_the_same_trials_and_none_is_final(home: Path) -> None:
    drafts = resolve(home, methods=("bitfit", "lora"), tune=4, baselines=True).drafts
    assert {draft.job.method for draft in drafts if not draft.search} == {"majority", "knn"}
    searches = [draft.search for draft in drafts if draft.search]
    assert {(search.budget, tuple(search.first())) for search in searches} == {
        (4, (Trial("adamw", 1e-4), Trial("adamw", 1e-3), Trial("adamw", 1e-2)))
    }
    trials = {search.trial_job(trial).id for search in searches for trial in search.first()}
    assert len(trials) == 12
    assert not trials & {draft.job.id for draft in drafts}
    assert {search.trial_job(search.first()[0]).role for search in searches} == {"trial"}


def test_seeds_share_the_trials_of_the_first_where_the_test_part_is_stated(home: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        studies.draw(tmp_path / "given" / part, 8, seed=len(part))
    asked = studies.small(tmp_path / "given", tune=2, seeds=(3, 4))
    first, second = studies_.resolve(asked, studies.places(home)).drafts
    assert first.search
    assert first.search == second.search
    assert first.search.job.seed == 3


def test_no_test_image_of_any_seed_is_in_the_trials_that_find_its_rate(home: Path) -> None:
    """Where each seed draws its own parts, the train and val parts of the first hold test images of others."""
    resolved = resolve(home, tune=2, seeds=(0, 1, 2))
    data = {one.fingerprint: one for one in resolved.data}
    for draft in resolved.drafts:
        assert draft.search
        trial, test = draft.search.job, {*data[draft.job.fingerprint].names["test"]}
        assert not test & {*data[trial.fingerprint].names["train"], *data[trial.fingerprint].names["val"]}
        assert trial.seed == draft.job.seed


def test_without_a_validation_part_nothing_is_tuned(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies.draw(home / "given" / "train", 4)
    studies.draw(home / "given" / "test", 3, seed=1)
    monkeypatch.setattr(studies_, "load", all_of_train)
    asked = studies.small(home / "given", tune=2)
    with pytest.raises(RequestError, match=r"--tune 2 needs a validation part, and folder:.*given has none"):
        studies_.resolve(asked, studies.places(home))


def all_of_train(*wanted: Any, **options: Any) -> Data:
    """Load images with what was carved from train joined to it again, as a data set without a validation part has."""
    return images.load(*wanted, **options | {"joined": "carved"})


# --- written down ----------------------------------------------------------------------------------------------------


def test_the_study_notes_which_job_answers_which_budget(home: Path, tmp_path: Path) -> None:
    resolved = resolve(home, methods=("lora",), ratios=("10", "100", "1%"))
    finals = [draft.job for draft in resolved.drafts]
    studies_.write_study(resolved, finals, Store(tmp_path))
    noted = json.loads((tmp_path / "study.json").read_text())
    assert [noted["jobs"][job.id]["targets"] for job in finals] == [[10, 100], [round(0.01 * TOTAL)]]
    assert noted["asked"]["ratios"] == ["10", "100", "1%"]


def test_a_study_file_is_what_the_flags_are(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        'methods = ["linear", "shpeft[lam=0.5]"]\ndatasets = ["busi"]\nratios = ["0.1%", "1%"]\n'
        'seeds = [0, 1]\nbackbone = "mini"\nrecipe = "standard"\ntune = 4\nbaselines = false\n'
    )
    assert load_study(file) == studies.study(
        methods=("linear", "shpeft[lam=0.5]"),
        datasets=("busi",),
        ratios=("0.1%", "1%"),
        seeds=(0, 1),
        backbone="mini",
        recipe="standard",
        tune=4,
        baselines=False,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('method = ["lora"]', "has no field 'method'"),
        ("seeds = [", "is not valid TOML"),
        ('seeds = ["x"]', "seeds must be a whole number, got x"),
        ("steps = 0", "steps must be above 0, got 0"),
        ('precision = "fp8"', "precision must be 'auto', 'fp32' or 'bf16', got fp8"),
    ],
)
def test_a_wrong_study_file_is_refused_by_key(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(RequestError) as error:
        load_study(tmp_path / "study.toml")
    assert message in str(error.value)


# --- what is refused before anything trains --------------------------------------------------------------------------


def test_unknown_names_are_answered_with_near_ones(home: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean .*lora"):
        resolve(home, methods=("lroa",))


def test_weights_are_opened_before_anything_trains(home: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    where: Places = replace(studies.places(home), weights=tmp_path / "text.safetensors")
    with pytest.raises(WeightsError, match=r"text\.safetensors"):
        studies_.resolve(studies.small(home / "images"), where)


# --- plan ------------------------------------------------------------------------------------------------------------

CLIP = 85_799_424
PAPER = studies.study(
    methods=("full", "bitfit", "lora", "shpeft"),
    datasets=("covid_ct", "busi", "chest_xray"),
    backbone="clip_vit_b16",
    recipe="paper",
)


def test_the_paper_s_jobs_are_listed_with_exact_counts_and_nothing_at_hand(tmp_path: Path) -> None:
    rows = outline(PAPER, studies.places(tmp_path))
    busi = [row for row in rows if row["data set"] == "busi"]
    assert len(rows) == 3 * len(busi)
    assert {(row["method"], row["backbone"]): row["trainable"] for row in busi} == {
        ("majority", "clip_vit_b16"): 0,
        ("knn", "clip_vit_b16"): 0,
        ("linear", "clip_vit_b16"): 0,
        ("linear", "clip_vit_b16@random"): 0,
        ("full", "clip_vit_b16"): CLIP,
        ("bitfit", "clip_vit_b16"): 102_912,
        ("lora", "clip_vit_b16"): 294_912,
        ("shpeft", "clip_vit_b16"): round(0.01 * CLIP),
    }
    assert {row["with head"] - row["trainable"] for row in busi if row["method"] not in {"majority", "knn"}} == {
        3 * 769
    }
    assert {(row["recipe"], row["steps"]) for row in rows} == {("paper", 40_000)}


def test_a_plan_knows_the_trials_and_what_the_authors_do(tmp_path: Path) -> None:
    asked = studies.study(
        methods=("adaptformer", "bitfit"), datasets=("chaoyang",), backbone="mini", baselines=False, recipe="official"
    )
    adaptformer, bitfit = outline(asked, studies.places(tmp_path))
    images = round(0.9 * catalogue.dataset_entry("chaoyang").sizes["train"])  # the rest is held out for validation
    for row, method in ((adaptformer, "adaptformer"), (bitfit, "bitfit")):
        made = official_recipes.recipe(method, RECIPES["official"], images, {})
        assert (row["steps"], row["trials"]) == (made.steps, 0)
    tuned = outline(studies.study(asked, methods=("lora",), recipe="standard"), studies.places(tmp_path))
    assert [(row["seed"], row["trials"]) for row in tuned] == [(0, 8), (1, 8), (2, 8)]
    images_of_a_user = studies.draw(tmp_path / "images", 2)
    asked = studies.study(asked, methods=("adaptformer", "shpeft"), datasets=(f"folder:{images_of_a_user}",))
    assert [row["steps"] for row in outline(asked, studies.places(tmp_path))] == [None, 40_000]


def test_a_plan_lists_no_job_twice(tmp_path: Path) -> None:
    asked = studies.study(PAPER, methods=("lora", "lora"), datasets=("busi", "busi"), ratios=("1k", "2k"), seeds=(0, 0))
    rows = outline(replace(asked, baselines=False), studies.places(tmp_path))
    assert [(row["method"], row["targets"], row["trainable"]) for row in rows] == [("lora", (1000, 2000), 36_864)]


def test_paper_and_all_name_methods(tmp_path: Path) -> None:
    def methods(*words: str) -> tuple[str, ...]:
        asked = studies.study(methods=words, datasets=("phantoms",))
        return tuple(map(str, defaults.complete(asked, studies.places(tmp_path))[0].methods))

    twelve = "adaptformer bitfit ft_att ft_ln full linear lora shpeft spt_lora ssf vpt_deep vpt_shallow"
    assert methods("paper") == tuple(twelve.split())
    assert {*twelve.split(), "dora", "control_random"} <= set(methods("all"))
    assert {"majority", "knn"}.isdisjoint(methods("all"))
    assert methods("lora[r=4]", "paper")[0] == "lora[r=4]"


def test_more_seeds_build_no_more_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[VisionTransformer] = []
    construct = VisionTransformer.__init__

    def counted(self: VisionTransformer, *args: Any, **options: Any) -> None:
        built.append(self)
        construct(self, *args, **options)

    monkeypatch.setattr(VisionTransformer, "__init__", counted)
    images = studies.draw(tmp_path / "images", 10)

    def networks(seeds: tuple[int, ...]) -> int:
        built.clear()
        studies.jobs(studies.small(images, methods=("linear", "bitfit"), seeds=seeds), studies.places(tmp_path))
        return len(built)

    assert networks((0, 1, 2, 3)) == networks((0,)) > 0
