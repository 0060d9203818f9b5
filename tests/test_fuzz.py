"""Files of a user with any content are read correctly or refused in a sentence: studies, tables, catalogue.

A few examples, always the same; `nox -s fuzz` draws thousands of others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from peftbench.core.catalogue import DatasetEntry, MethodEntry, OwnEntry, read_entry
from peftbench.core.contract import Splits
from peftbench.core.registry import registry
from peftbench.core.spec import Study, read_study
from peftbench.core.syntax import LARGEST, budget, parse, texts
from peftbench.datasets.table import ImageTable
from peftbench.errors import CatalogueError, DataError, PeftbenchError, RequestError
from tests.fuzzing import drawn, fresh, or_refused
from tests.images import photo


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# --- studies and the language of names -------------------------------------------------------------------------------

PIECES = ("lora", "timm:x", "[", "]", "r=4", "=", ",", "@random", "/", "%", ":", "+", " ", "\0", "\n", "²", "٣", "1e9")
SPECS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=6).map("".join)
NUMBERS = st.integers(-3, 200) | st.integers() | st.floats() | st.sampled_from((2**63, -(10**400)))
SCALARS = NUMBERS | st.booleans() | SPECS | st.sampled_from(("1%", "100k", "1e308M", "bf16", "light", "grouped"))
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(SPECS, SCALARS, max_size=2)
KEYS = st.sampled_from([field.name for field in fields(Study)])


def toml(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def told(values: Mapping[Any, Any]) -> bytes:
    return "".join(f"{key} = {toml(value)}\n" for key, value in values.items()).encode(errors="replace")


@drawn
@given(st.dictionaries(KEYS, VALUES, max_size=3).map(told) | st.binary(max_size=60))
@example(b"\xff\xfe")
@example(b"a = " + 20000 * b"[")
@example(b"seeds = [0x" + 5000 * b"f" + b"]")
@example(b"steps = " + 5000 * b"9")
@example(b"tune = 99999999999")
@example(b"lr = nan")
@example(b'train_share = ["1e308M"]')
def test_a_study_file_is_a_study_or_a_sentence(home: Path, content: bytes) -> None:
    assert_a_study_or_a_sentence(fresh(home) / "study.toml", content)


def assert_a_study_or_a_sentence(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with or_refused(RequestError):
        study = read_study(file, {})
        assert Study(**vars(study)) == study


@drawn
@given(SPECS)
def test_a_name_reads_as_it_is_written(text: str) -> None:
    with or_refused(RequestError):
        spec = parse(text)
        again = parse(str(spec))
        assert str(again) == str(spec)
        assert (again.name, again.argument, again.random) == (spec.name, spec.argument, spec.random)
        assert [again.name for again in map(parse, texts(f"bitfit,{spec.name}"))] == ["bitfit", spec.name]


@drawn
@given(st.lists(st.sampled_from(("lora[r=4,alpha=8]", "bitfit", "timm:a.b[depth=8]@random", "1%", "100k")), max_size=5))
def test_what_commas_join_they_part(names: list[str]) -> None:
    assert texts(" , ".join(names)) == tuple(names)


@drawn
@given(st.integers(2, LARGEST // 1000), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_budget_reads_as_it_is_written(count: int, share: float) -> None:
    assert budget(str(count)) == count
    assert budget(f"{count}k") == 1000 * count
    assert budget(repr(share)) == share


@drawn
@given(SPECS | st.sampled_from(("1e308M", "1e400", "-0%", "²", "٣", "infk", "%")))
def test_any_other_budget_is_refused(text: str) -> None:
    with or_refused(RequestError):
        assert budget(text) > 0


# --- tables ----------------------------------------------------------------------------------------------------------

CELLS = (
    "benign",
    "01",
    "1",
    "9" * 5000,
    "a|b",
    "",
    " ",
    '"',
    "a\0b",
    "../x.png",
    "x" * 400,
    "train",
    "é",
    "~",
    "\u2028",
)
COLUMNS = ("image", "label", "split", "group", " Label ", "", "label;x", "\ufeffimage")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "latin-1")


@st.composite
def tables(draw: st.DrawFn) -> str:
    """A table of some of the images that are there; one cell in six or so is strange."""
    columns = ["image", "label", *draw(st.lists(st.sampled_from(COLUMNS), max_size=2))]
    strange = st.sampled_from(CELLS)
    rows = [columns]
    for image in draw(st.lists(st.sampled_from([f"{i}.png" for i in range(12)]), min_size=6, max_size=12, unique=True)):
        usual = {"image": image, "label": draw(st.sampled_from(("1", "2"))), "split": "train", "group": image}
        rows.append([usual.get(key, "x") if draw(st.integers(0, 30)) else draw(strange) for key in columns])
    separator = draw(st.sampled_from((",", ";", "\t")))
    return "\n".join(separator.join(row) for row in rows)


@pytest.fixture(scope="module")
def images(home: Path) -> Path:
    return with_images(fresh(home))


def with_images(folder: Path) -> Path:
    for i in range(12):
        Image.fromarray(photo(i)).save(folder / f"{i}.png")
    return folder


def assert_loads_or_refuses(table: Path, content: bytes) -> None:
    table.write_bytes(content)
    with or_refused(DataError, printable=False):
        assert_whole(ImageTable(str(table)).load(table.parent, 0), table)


def assert_whole(splits: Splits, table: Path) -> None:
    names = [name for one in splits.parts.values() for name in one.names]
    assert len(names) == len(set(names))
    assert all((table.parent / name).is_file() for name in names)
    lines = re.split("[\r\n]+", decoded(table.read_bytes()).strip("\r\n"))
    assert len(names) == len(lines) - 1


def decoded(content: bytes) -> str:
    """The text of a table in one of ENCODINGS."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


@drawn
@given(tables(), st.sampled_from(ENCODINGS))
@example("image,label\n" + "".join(f"{i}.png,{'9' * (5000 + i % 2)}\n" for i in range(12)), "utf-8")
@example("image,label\n" + 400 * "x" + ".png,1\n", "utf-8")
@example("image,label,label\n0.png,1,2\n", "utf-8")
@example("image,label\n" + "".join(f"{i}.png,1\n" for i in range(9)) + '9.png,"2\n10.png,1\n11.png,"\n', "utf-8")
@example("image,label\n0.png," + 200_000 * "x" + "\n", "utf-8")
@example('image,label\n0.png,"1\n', "utf-8")
def test_a_table_becomes_parts_or_a_sentence(images: Path, text: str, encoding: str) -> None:
    assert_loads_or_refuses(images / "table.csv", text.encode(encoding, errors="replace"))


@drawn
@given(st.binary(max_size=80).map(lambda noise: b"image,label\n0.png,1\n1.png,2\n" + noise) | st.binary(max_size=80))
def test_any_bytes_as_a_table(images: Path, content: bytes) -> None:
    file = images / "bytes.csv"
    file.write_bytes(content)
    with pytest.raises(DataError):  # two images are too few to be parted
        ImageTable(str(file)).load(images, 0)


def test_numbers_as_labels_have_one_order(images: Path) -> None:
    file = images / "numbers.csv"
    file.write_text("image,label\n" + "".join(f"{i}.png,{label}\n" for i, label in enumerate(("10", "9", "09", "0"))))
    assert ImageTable(str(file)).card.classes == ("0", "09", "9", "10")


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x.csv", "a\0b.csv"])
def test_a_path_that_no_file_can_have_is_named(path: str) -> None:
    with pytest.raises(DataError, match="Invalid path"):
        ImageTable(path).load(Path(), 0)


# --- the catalogue ---------------------------------------------------------------------------------------------------

OWN = ("path", "title", "classes", "group", "task", "sizes", "members", "download", "official", "knob")
GROUPS = ("(", "a{99999999999}", 5000 * "(", r"(\d)", ".*?", "\\")


@drawn
@given(st.dictionaries(st.sampled_from(OWN), VALUES, max_size=4).map(told) | st.binary(max_size=60))
@example(b"path = " + 20000 * b"[")
@example(b"\xff")
def test_a_catalogue_file_is_an_entry_or_a_sentence(home: Path, content: bytes) -> None:
    assert_an_entry_or_a_sentence(fresh(home) / "mine.toml", content)


def assert_an_entry_or_a_sentence(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for model in (OwnEntry, DatasetEntry, MethodEntry):
        with or_refused(CatalogueError, printable=False):
            entry = read_entry(file, model)
            assert isinstance(entry, OwnEntry | DatasetEntry | MethodEntry)
            assert entry.title


@drawn
@given(st.sampled_from(GROUPS) | st.text(max_size=5), st.sampled_from(("../table.csv", "a\0b", "~nobody-there", "")))
def test_an_own_data_set_loads_or_is_refused(home: Path, group: str, path: str) -> None:
    folder = fresh(home)
    (folder / "datasets").mkdir()
    (folder / "datasets" / "mine.toml").write_bytes(told({"title": "mine", "path": path, "group": group}))
    with chdir(folder), pytest.raises(PeftbenchError) as refusal:
        registry("datasets").get("mine").load(folder, 0)
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize("group", GROUPS[:3])
def test_a_group_that_is_no_expression_is_named(group: str, images: Path, home: Path) -> None:
    folder = fresh(home)
    (folder / "datasets").mkdir()
    (images / "whole.csv").write_text("image,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(12)))
    facts = {"title": "mine", "path": str(images / "whole.csv"), "group": group}
    (folder / "datasets" / "mine.toml").write_bytes(told(facts))
    with chdir(folder), pytest.raises(CatalogueError, match="`group` is not a valid regular expression"):
        registry("datasets").get("mine").load(folder, 0)
