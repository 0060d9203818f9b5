"""Recipe `official`: the catalogue's numbers as a recipe, and what of the authors' training it leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from peftbench.core import catalogue_files, official_recipes
from peftbench.core.recipe import RECIPES, Recipe
from peftbench.study import resolve as studies_of
from peftbench.training.optimizer import learning_rate
from tests import studies

BASE = RECIPES["official"]


@pytest.mark.parametrize("method", catalogue_files.method_names())
def test_every_method_of_the_catalogue_has_a_recipe(method: str) -> None:
    made = official_recipes.recipe(method, BASE, 1000, {})
    assert made.name == "official"
    assert made.lr in official_recipes.rates(method, made)
    assert 0 < learning_rate(made.steps - 1, replace(made, min_lr=1e-12)) <= made.lr


def test_epochs_become_steps_and_the_rate_grows_with_the_batch() -> None:
    made = official_recipes.recipe("adaptformer", BASE, 2048, {})
    assert (made.steps, made.batch, made.optimizer, made.head) == (200, 1024, "sgd", "batchnorm")
    assert made.lr == pytest.approx(0.4)  # 0.1 for 256 images
    assert made.warmup == pytest.approx(0.2)
    smaller = official_recipes.recipe("adaptformer", BASE, 2048, {"batch": 64})
    assert smaller.lr == pytest.approx(0.025)
    assert smaller.steps == 3200


def test_what_the_user_writes_wins() -> None:
    made = official_recipes.recipe("adaptformer", BASE, 2048, {"steps": 7, "lr": 1e-4})
    assert (made.steps, made.lr) == (7, 1e-4)


def test_a_warm_up_that_the_user_writes_wins() -> None:
    assert official_recipes.recipe("adaptformer", BASE, 2048, {"warmup": 0.0}).warmup == 0.0


def test_a_schedule_begins_and_ends_no_higher_than_its_rate() -> None:
    made = official_recipes.recipe("spt_lora", BASE, 1000, {})
    assert (made.warmup_lr, made.min_lr) == (1e-6, 1e-5)
    lower = made.at(1e-7)
    assert (lower.lr, lower.warmup_lr, lower.min_lr) == (1e-7, 1e-7, 1e-7)
    assert made.at(made.lr) == made


def test_the_paper_s_method_counts_steps() -> None:
    made = official_recipes.recipe("shpeft", BASE, 10, {})
    assert (made.steps, made.batch, made.lr, made.head, made.warmup) == (40_000, 64, 1e-3, "l2", 0.0)


def test_a_grid_is_chosen_from_on_validation(tmp_path: Path) -> None:
    images = studies.draw(tmp_path / "images", images=10)
    asked = studies.small(images, methods=("full", "bitfit"), recipe="official", batch=None)
    full, bitfit = studies_of.resolve(asked, studies.places(tmp_path)).drafts
    assert full.search
    assert full.search.given == (1.5e-4, 7.5e-4, 1.5e-3, 7.5e-3)  # times 384 / 256
    assert bitfit.search is None
    recipe = bitfit.job.recipe
    assert (recipe.lr, recipe.clip, recipe.schedule, recipe.warmup) == (1e-3, 1.0, "constant", 0.0)


def test_of_a_range_four_rates_are_tried_from_its_lowest_to_its_highest() -> None:
    """GPS' scripts choose for each data set; the middle of the four stands where there is no validation part."""
    made = official_recipes.recipe("gps", BASE, 1000, {})
    assert official_recipes.rates("gps", made) == (1e-4, 4.6e-4, 2.2e-3, 1e-2)
    assert official_recipes.rates("ssf", official_recipes.recipe("ssf", BASE, 1000, {})) == (1e-3, 3.7e-3, 0.014, 0.05)
    assert official_recipes.left_out("gps") == []


def test_the_authors_fields_are_taken_where_the_user_gives_none() -> None:
    assert official_recipes.fields("ft_att", {}) == {"train_pos_embed": True}
    assert official_recipes.fields("ft_att", {"train_pos_embed": False}) == {"train_pos_embed": False}


def test_what_is_left_out_is_noted() -> None:
    assert official_recipes.left_out("ft_att") == [
        "official: without the authors' mixup, cutmix, erasing, augmentation, warm-up"
    ]
    assert official_recipes.left_out("vpt_deep") == [
        "official: without the authors' weight decay grid, augmentation, start of the head"
    ]
    assert official_recipes.left_out("bitfit") == []
    assert official_recipes.left_out("lora") == ["official: the authors state no learning rate"]


def test_the_schedules() -> None:
    recipe = Recipe(lr=1.0, steps=10, warmup=0.0, min_lr=0.2)
    line = [learning_rate(step, replace(recipe, schedule="linear")) for step in (0, 5, 10)]
    assert line == pytest.approx([1.0, 0.6, 0.2])
    assert {learning_rate(step, replace(recipe, schedule="constant")) for step in range(10)} == {1.0}
    assert learning_rate(10, recipe) == pytest.approx(0.2)
    rise = replace(recipe, steps=10, warmup=0.5, warmup_lr=0.5)
    assert [learning_rate(step, rise) for step in range(5)] == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
