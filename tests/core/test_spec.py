"""The little language of names, and what does and does not decide a job's id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbench.core import catalogue_files
from peftbench.core.contract import Preprocessing
from peftbench.core.fields import build
from peftbench.core.recipe import RECIPES, Recipe
from peftbench.core.spec import Job, find_study, load_study, read_study
from peftbench.core.syntax import Spec, budget, parse, texts
from peftbench.errors import PeftbenchError, RequestError
from peftbench.methods.lora import LoRA
from peftbench.methods.shpeft import SHPEFT
from peftbench.storage.files import sha256_json
from tests import studies

# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("lora", Spec("lora")),
        (" lora ", Spec("lora")),
        ("lora[]", Spec("lora")),
        ("lora[r=4,alpha=r]", Spec("lora", None, {"r": "4", "alpha": "r"})),
        ("lora[ r = 4 , sites = qkv+proj ]", Spec("lora", None, {"r": "4", "sites": ("qkv", "proj")})),
        ("shpeft[ratio=1%]", Spec("shpeft", None, {"ratio": 0.01})),
        ("x[lr=1e+5]", Spec("x", None, {"lr": "1e+5"})),
        ("x[blocks=1+2+3]", Spec("x", None, {"blocks": ("1", "2", "3")})),
        ("mini@random", Spec("mini", random=True)),
        ("timm:vit_tiny.in21k[depth=8]@random", Spec("timm", "vit_tiny.in21k", {"depth": "8"}, random=True)),
        ("open_clip:ViT-B-16/openai", Spec("open_clip", "ViT-B-16/openai")),
        ("folder:clinic", Spec("folder", "clinic")),
        ("folder:my clinic/a[1]@b", Spec("folder", "my clinic/a[1]@b")),
        ("./clinic", Spec("folder", "./clinic")),
        ("~/a[b]=c,d@random", Spec("folder", "~/a[b]=c,d@random")),
        ("/data/2024:05", Spec("folder", "/data/2024:05")),
    ],
)
def test_reading(text: str, spec: Spec) -> None:
    assert parse(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Cannot read ''"),
        ("lora[r=4", r"Cannot read 'lora\[r=4': write NAME, NAME\[field=value,...\] or NAME:ARGUMENT\."),
        ("lora r=4", "Cannot read"),
        ("lora[r=4][alpha=8]", "Cannot read"),
        ("lora@rnd", "Cannot read"),
        ("folder:", "Cannot read"),
        ("lora[r]", r"In 'lora\[r\]', 'r' has no value: write field=value\."),
        ("lora[r=4,r=8]", "a field is given twice"),
        ("shpeft[ratio=x%]", "Cannot read 'x%' as a number"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse(text)


def test_commas_inside_brackets_do_not_separate() -> None:
    assert texts("lora[r=4,alpha=r], shpeft[lam=0.5],,full") == ("lora[r=4,alpha=r]", "shpeft[lam=0.5]", "full")
    assert texts(" 1%,100k ") == ("1%", "100k")
    assert texts("") == ()


def test_a_comma_may_be_part_of_a_path_that_exists() -> None:
    there = {"set, v2", "set", "a/b,c,d"}.__contains__
    assert texts("folder:set, v2", there) == ("folder:set, v2",)
    assert texts("busi,folder:set, v2,table:x.csv", there) == ("busi", "folder:set, v2", "table:x.csv")
    assert texts("a/b,c,d,busi", there) == ("a/b,c,d", "busi")
    assert texts("folder:other, v2", there) == ("folder:other", "v2")


def test_a_folder_with_a_comma_in_its_name_is_one_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set, v2").mkdir()
    assert read_study(None, {"datasets": ["folder:set, v2"]}).datasets == ("folder:set, v2",)
    assert read_study(None, {"datasets": ["folder:" + "x" * 9000 + ",busi"]}).datasets[1] == "busi"


NAME = st.from_regex(r"[A-Za-z0-9_\-]{1,8}", fullmatch=True)
PLAIN = st.from_regex(r"[A-Za-z0-9_.\-]{1,8}", fullmatch=True)
WORD = st.from_regex(r"[A-Za-z_]{1,8}", fullmatch=True)
VALUE = PLAIN | st.lists(WORD, min_size=2, max_size=3).map(tuple)
SPECS = st.builds(
    Spec,
    NAME.filter(lambda name: name != "folder"),
    st.none() | st.from_regex(r"[A-Za-z0-9_./\-]{1,12}", fullmatch=True),
    st.dictionaries(NAME, VALUE, max_size=3),
    st.booleans(),
)
PATHS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).map(lambda path: Spec("folder", path))


@settings(max_examples=100)
@given(SPECS | PATHS)
def test_what_is_written_reads_back_the_same(spec: Spec) -> None:
    assert parse(str(spec)) == spec


@settings(max_examples=100)
@given(st.floats(1e-9, 1, exclude_min=True), st.floats(0, 1e6))
def test_no_digit_of_a_number_is_lost(ratio: float, lam: float) -> None:
    method = SHPEFT(ratio=ratio, lam=lam)
    assert build(
        SHPEFT, parse(str(Spec("shpeft", None, method.values() | {"batches": 2}))).fields, "shpeft"
    ) == replace(method, batches=2)


@pytest.mark.parametrize(("value", "shown"), [(0.5, "0.5"), (2.0, "2"), (1e-5, "1e-05"), (("a", "b"), "a+b"), (3, "3")])
def test_values_are_shown_as_short_as_they_can_be(value: Any, shown: str) -> None:
    assert str(Spec("x", None, {"y": value})) == f"x[y={shown}]"


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1%", 0.01),
        ("0.01%", 0.0001),
        ("100%", 1.0),
        ("0.01", 0.01),
        ("1e-3", 0.001),
        ("1.0", 1.0),
        ("100k", 100_000),
        ("0.3M", 300_000),
        ("1.5k", 1_500),
        ("5000", 5_000),
        ("1e5", 100_000),
        ("1", 1),
    ],
)
def test_shares_and_counts(text: str, value: float) -> None:
    found = budget(text)
    assert found == pytest.approx(value)
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["", "k", "%", "x", "1%%", "0", "0%", "-1%", "101%", "-5", "0.0001k", "1.5", "nan", "inf", "nan%", "infk"]
)
def test_impossible_ratios_get_a_sentence(text: str) -> None:
    with pytest.raises(RequestError, match=r"^(The ratio .* is out of range: .*|Cannot read .* as a number)\.$"):
        budget(text)


# --- recipes and studies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"steps": 0},
        {"batch": -1},
        {"warmup": 1.0},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"weight_decay": float("nan")},
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_carried_out_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=rf"^recipe: {next(iter(fields))} must be "):
        Recipe("mine", **fields)


def test_recipes_carry_their_names() -> None:
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}


def test_recipe_paper_trains_as_in_the_paper() -> None:
    paper = RECIPES["paper"]
    assert (paper.optimizer, paper.batch, paper.lr, paper.steps, paper.warmup) == ("sgd", 64, 1e-3, 40_000, 0.0)
    assert (paper.momentum, paper.weight_decay, paper.head, paper.selection) == (0.9, 0.0, "l2", "last")


def test_a_study_reads_from_toml(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        'methods = ["lora[r=4]", "full"]\ndatasets = "busi"\nseeds = [0, 1]\ntune = 4\n'
    )
    assert load_study(tmp_path / "study.toml") == studies.study(
        methods=("lora[r=4]", "full"), datasets=("busi",), seeds=(0, 1), tune=4
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method = 'lora'", "has no field 'method'; its fields are methods, "),
        ("seeds = 'x'", "seeds must be a whole number, got x"),
        ("methods = ", "is not valid TOML"),
        ("precision = 'fp8'", "precision must be 'auto', 'fp32' or 'bf16', got fp8"),
        ("steps = 0", "steps must be above 0, got 0"),
        ("\xff", "is not valid TOML"),
    ],
)
def test_a_study_that_will_not_do_gets_a_sentence(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "study.toml").write_bytes(content.encode("latin-1"))
    with pytest.raises(RequestError, match=message):
        load_study(tmp_path / "study.toml")


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeftbenchError, match=r"Cannot read the study .*nowhere\.toml"):
        load_study(tmp_path / "nowhere.toml")


# --- identity --------------------------------------------------------------------------------------------------------

JOB = Job(
    method="lora",
    version=1,
    fields=LoRA(r=4).values(),
    defaults=LoRA().values(),
    dataset="busi",
    fingerprint="f" * 64,
    split="official",
    backbone="mini",
    digest="d" * 64,
    image_size=None,
    preprocessing=Preprocessing(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    recipe=replace(RECIPES["quick"], precision="fp32"),
    seed=0,
    threads=1,
)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"threads": 2},
        {"threads": None},
        {"recipe": replace(JOB.recipe, precision="bf16")},
        {"recipe": replace(JOB.recipe, lr=3e-4)},
        {"recipe": replace(JOB.recipe, name="mine")},
        {"method": "full"},
        {"version": 2},
        {"fields": LoRA(r=5).values()},
        {"fingerprint": "0" * 64},
        {"split": "70/10/20"},
        {"backbone": "mini@random"},
        {"digest": "0" * 64},
        {"preprocessing": replace(JOB.preprocessing, size=128)},
        {"role": "trial"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_the_result_decides_the_id(change: dict[str, Any]) -> None:
    assert replace(JOB, **change).id != JOB.id


@pytest.mark.parametrize(
    "change",
    [
        {"target": 1000},
        {"edge": "floor"},
        {"knob": "r"},
        {"tuning": {"chosen": 1e-3}},
        {"dataset": "the same under another name"},
        {"fields": {**JOB.fields, "new": 3}, "defaults": {**JOB.defaults, "new": 3}},
        {"fields": {**JOB.fields, "sites": ["qkv"]}, "defaults": {**JOB.defaults, "sites": ["qkv"]}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_else_does(change: dict[str, Any]) -> None:
    assert replace(JOB, **change).id == JOB.id


def test_no_place_or_device_is_part_of_a_job() -> None:
    assert not {"store", "data", "cache", "weights", "device", "workers"} & set(vars(JOB))


def test_numbers_of_a_study_need_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('ratios = [0.01, "1%", 1000]\ntrain_share = [0.5]\nseeds = 3')
    study = load_study(tmp_path / "study.toml")
    assert (study.ratios, study.train_share, study.seeds) == (("0.01", "1%", "1000"), ("0.5",), (3,))


def test_ids_are_the_same_tomorrow() -> None:
    """A change of this number orphans every stored result: it wants a reason."""
    assert JOB.id == "b0b91b64e3b7fdd2"


def test_an_id_does_not_depend_on_the_order_of_fields() -> None:
    assert replace(JOB, fields=dict(reversed([*JOB.fields.items()]))).id == JOB.id
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})


def test_a_label_shows_what_is_not_at_its_default() -> None:
    assert JOB.label == "lora[r=4]"
    assert replace(JOB, fields=LoRA().values()).label == "lora"
    assert replace(JOB, fields=LoRA(r=4, sites=("qkv", "proj")).values()).label == "lora[r=4,sites=qkv+proj]"


def test_a_label_leaves_out_the_knob_that_a_budget_turned() -> None:
    assert replace(JOB, knob="r").label == "lora[r=4]"
    assert replace(JOB, knob="r", target=1000).label == "lora"


def test_a_study_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('methods = ["lora"]\nsteps = 5\n', encoding="utf-8-sig")
    assert load_study(file).steps == 5


def test_true_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("steps = true\n")
    with pytest.raises(RequestError, match="steps must be a whole number, got true"):
        load_study(tmp_path / "study.toml")


def test_a_recipe_is_restored_from_its_record() -> None:
    recipe = Recipe("standard", optimizer="sgd", lr=1e-2, clip=1.0, precision="bf16")
    assert Recipe.restored({**recipe.stored(), "label": "a field of an earlier version"}) == recipe
    assert Recipe.restored({"name": "standard"}) == Recipe()


# --- named studies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalogue_files.study_names())
def test_a_shipped_study_is_printed_or_small(name: str) -> None:
    printed, small = (read_study(find_study(name), {}, scale) for scale in ("printed", "small"))
    assert load_study(find_study(name)) == printed
    if name != "quick":
        assert (printed.backbone, str(printed.recipe), printed.seeds) == ("clip_vit_b16", "paper", (0, 1, 2))
        assert printed.datasets == ("paper",)
        assert (small.backbone, str(small.recipe), small.seeds, small.datasets) == ("", "standard", (0, 1, 2), ("all",))


def test_options_win_over_a_study_whatever_it_sets() -> None:
    file, small = find_study("paper-table4"), "small"
    given = {"datasets": ["busi"], "seeds": ["5"], "baselines": True, "lr": 0.01}
    study = read_study(file, given, small)
    assert (study.datasets, study.seeds, study.baselines, study.lr, study.tune) == (("busi",), (5,), True, 0.01, None)
    assert len(study.methods) == 5
    assert read_study(find_study("paper-fig4"), {"match": "shpeft@1%"}).ratios == ()


def test_a_file_is_a_study_of_its_own_and_may_have_a_small_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quick").mkdir()  # a store of that name does not hide the study
    Path("mine").write_text('methods = ["lora"]\n')
    Path("study.toml").write_text('title = "Mine"\nsteps = 100\n[small]\nsteps = 5\n')
    assert find_study("quick").name == "quick.toml"
    assert load_study(find_study("mine")).methods == (parse("lora"),)
    assert load_study(find_study("study.toml")).steps == 100
    assert load_study(find_study("study.toml"), "small").steps == 5


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("paper-table9", "", "No study is called 'paper-table9'. Did you mean paper-table"),
        ("nowhere.toml", "", "Cannot read the study nowhere.toml"),
        ("no/where", "", "Cannot read the study no/where"),
        ("quick", "tiny", "--scale must be printed or small, got tiny"),
        ("one.toml", "small", r"has no table \[small\]; leave --scale out"),
    ],
)
def test_what_is_no_study_or_scale_is_refused(
    name: str, scale: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.toml").write_text("steps = 5\n")
    with pytest.raises(RequestError, match=message):
        read_study(find_study(name), {}, scale)
