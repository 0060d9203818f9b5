"""A recipe with values in brackets: what the paper leaves open can be tried both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.core.recipe import RECIPES
from peftbench.core.spec import Study
from peftbench.core.syntax import parse
from peftbench.errors import RequestError
from peftbench.study.defaults import make_recipe
from tests import studies


def test_brackets_change_a_recipe() -> None:
    made = make_recipe(Study(recipe=parse("paper[momentum=0,head_scale=16]"), precision="fp32"), "cpu")
    own = RECIPES["paper"]
    assert (made.name, made.momentum, made.head_scale) == ("paper", 0.0, 16.0)
    assert (made.optimizer, made.steps, made.head) == (own.optimizer, own.steps, own.head)


def test_brackets_make_another_job(tmp_path: Path) -> None:
    images = studies.draw(tmp_path / "images", images=8)
    texts = ("quick", "quick[class_weights=balanced]", "quick[class_weights=none]")
    one, other, same = (
        studies.jobs(studies.small(images, recipe=text), studies.places(tmp_path))[0].id for text in texts
    )
    assert one == same != other


def test_brackets_win_over_the_authors_values(tmp_path: Path) -> None:
    images = studies.draw(tmp_path / "images", images=8)
    asked = studies.small(images, methods=("ft_att",), recipe="official[label_smoothing=0.2]")
    (job,) = studies.jobs(asked, studies.places(tmp_path))
    assert (job.recipe.label_smoothing, job.fields["train_pos_embed"]) == (0.2, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("papers", "No recipe is called 'papers'"),
        ("paper@random", "No recipe is called"),
        ("paper[steps=1]", "'steps' cannot be set in brackets; there are optimizer, lr, momentum,"),
        ("paper[rate=1]", "'rate' cannot be set in brackets"),
        ("paper[momentum=much]", "momentum must be a number, got much"),
        ("paper[momentum=1]", "recipe paper: momentum must be below 1, got 1"),
        ("paper[schedule=stairs]", "schedule must be 'cosine', 'linear' or 'constant', got stairs"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_recipe(Study(recipe=parse(text)), "cpu")
