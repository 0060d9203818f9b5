"""A user's own `methods/NAME.toml`: a named variant of a method, run by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.cli.check import check_one
from peftbench.cli.show import facts
from peftbench.core.syntax import parse
from peftbench.errors import CatalogueError, RequestError
from peftbench.methods.lora import LoRA
from peftbench.models import backbone
from peftbench.study import defaults
from peftbench.study import resolve as studies_of
from peftbench.study.method_grid import NamedMethod, fixed_sizes, resolve_method, sized_methods
from peftbench.testing import failed
from tests import studies


def method_of(text: str, recipe: str) -> NamedMethod:
    return resolve_method(parse(text), recipe)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a variant."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "small_lora.toml").write_text('base = "lora"\nr = 2\nsites = ["qkv", "proj"]\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_variant_is_its_base_with_its_fields(here: Path) -> None:
    assert here.is_dir()
    assert method_of("small_lora", "standard").method == LoRA(r=2, sites=("qkv", "proj"))
    assert method_of("small_lora[r=4]", "standard").method == LoRA(r=4, sites=("qkv", "proj"))


def test_it_is_the_same_job_under_another_name(here: Path) -> None:
    images = studies.draw(here / "images", 8)
    (job,) = studies.jobs(studies.small(images, methods=("small_lora",)), studies.places(here))
    (plain,) = studies.jobs(studies.small(images, methods=("lora[r=2,sites=qkv+proj]",)), studies.places(here))
    assert (job.label, plain.label) == ("small_lora", "lora[r=2,sites=qkv+proj]")
    assert job.id == plain.id
    both = studies.small(images, methods=("small_lora", "lora[r=2,sites=qkv+proj]"))
    assert len(studies_of.resolve(both, studies.places(here)).drafts) == 1


def test_it_is_listed_and_shown(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert studies.call(["list", "methods", "--json"], monkeypatch) == 0
    assert '"small_lora"' in capsys.readouterr().out
    given = facts("method", "small_lora")
    assert given["variant of"] == "lora[r=2,sites=qkv+proj]"
    assert given["options"]["r"] == "int = 2"
    assert given["options"]["alpha"].endswith("= 8")
    assert given["counts"]["mini"].startswith(f"{6 * 2 * (6 * 192):,} of ")
    assert here.is_dir()


def test_a_count_that_the_data_decide_is_shown_as_an_aim() -> None:
    counts = {name: facts("method", name)["counts"]["mini"] for name in ("spt_lora", "bitfit")}
    assert counts["spt_lora"].endswith("approximately, depends on the data")
    assert counts["bitfit"].endswith("head not counted")


def test_a_variant_may_have_variants(here: Path) -> None:
    (here / "methods" / "tiny_lora.toml").write_text('base = "small_lora"\nr = 1\n')
    assert method_of("tiny_lora", "standard").method == LoRA(r=1, sites=("qkv", "proj"))
    assert facts("method", "tiny_lora")["variant of"] == "lora[r=1,sites=qkv+proj]"
    assert failed(check_one("tiny_lora[alpha=4]", here)) == []


def test_a_plan_calls_a_method_by_what_tells_it_apart(here: Path) -> None:
    asked = studies.small(here, methods=("small_lora", "lora[alpha=4]", "lora"), ratios=("1%",))
    source = backbone.locate(asked.backbone, asked.image_size)
    assert [row.label for row in sized_methods(asked, source)] == ["small_lora", "lora[alpha=4]", "lora"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r = 2", "key 'base' must name the method"),
        ("base = 3", "key 'base' must name the method"),
        ("base =", "not valid"),
        ('base = "lorra"', "base = 'lorra' is no method"),
        ('base = "odd"', "its base leads back to 'odd'"),
    ],
)
def test_a_faulty_file_is_named(here: Path, text: str, message: str) -> None:
    (here / "methods" / "odd.toml").write_text(text)
    with pytest.raises(CatalogueError, match=rf"odd\.toml.*{message}"):
        method_of("odd", "standard")


def test_a_field_that_the_base_does_not_have_is_refused(here: Path) -> None:
    (here / "methods" / "odd.toml").write_text('base = "lora"\nrank = 2')
    with pytest.raises(RequestError, match="odd has no field 'rank'"):
        method_of("odd", "standard")


def test_a_built_in_name_is_taken(here: Path) -> None:
    (here / "methods" / "bitfit.toml").write_text('base = "lora"')
    with pytest.raises(CatalogueError, match="'bitfit' is the name of a built-in method"):
        method_of("small_lora", "standard")


# --- the size of one method for all ----------------------------------------------------------------------------------


def test_sizes_are_matched_to_one_method_and_the_controls_join(here: Path) -> None:
    asked, _ = defaults.complete(
        studies.study(methods=("lora", "bitfit"), backbone="mini", baselines=False, match="shpeft@1%"),
        studies.places(here),
    )
    methods = sized_methods(asked, backbone.locate("mini", blank=True))
    names = ["lora", "bitfit", "shpeft", "control_norm", "control_patch", "control_random", "control_within"]
    assert [one.name for one in methods] == names
    target = round(0.01 * 2_719_296)
    assert {one.targets for one in methods if one.fit} == {(target,)}
    reached = {one.name: one.fit.reached for one in methods if one.fit}
    assert reached["shpeft"] == reached["control_random"] == target
    assert abs(reached["lora"] - target) < 0.1 * target
    assert fixed_sizes(methods) == ["bitfit"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"match": "shpeft"}, "--match must be METHOD@RATIO, such as shpeft@1%, got shpeft"),
        ({"match": "shpeft@200%"}, "is out of range"),
        ({"match": "shpeft@1%", "ratios": ("1%",)}, "--match and --ratios exclude each other"),
    ],
)
def test_a_match_that_cannot_be_made_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        studies.study(**changes)


def test_a_method_of_one_size_cannot_be_matched() -> None:
    asked = studies.study(methods=("lora",), backbone="mini", match="bitfit@1%")
    with pytest.raises(RequestError, match="--match bitfit@1%: bitfit has one fixed size"):
        sized_methods(asked, backbone.locate("mini", blank=True))
