"""Data sets that a file datasets/NAME.toml of the working folder describes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from peftbench.core import catalogue, catalogue_files
from peftbench.core.contract import Preprocessing, Splits
from peftbench.core.registry import registry
from peftbench.data import availability
from peftbench.errors import CatalogueError, DataError, PluginError
from peftbench.study import images
from tests import studies

CLINIC = """
title = "Clinic ultrasound"
modality = "breast ultrasound"
path = "images"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with twenty images of ten patients in two class folders."""
    monkeypatch.chdir(tmp_path)
    for label in ("benign", "malignant"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(20):
            (tmp_path / f"images/{label}/patient{i // 2}_{i}.png").write_text(f"{label} {i}")
    (tmp_path / "datasets").mkdir()
    return tmp_path


def describe(text: str, name: str = "clinic") -> None:
    Path("datasets", f"{name}.toml").write_text(text)


def load() -> Splits:
    return availability.open_dataset("clinic").load(Path("unused"), 0)


def test_a_described_set_is_found_without_flags(home: Path) -> None:
    describe(CLINIC)
    card = availability.open_dataset("clinic").card
    assert "clinic" in registry("datasets").names()
    assert (card.title, card.modality, card.classes) == (
        "Clinic ultrasound",
        "breast ultrasound",
        ("benign", "malignant"),
    )
    assert [len(part) for part in load().parts.values()] == [28, 4, 8]
    assert availability.describe_presence("clinic", home) == "complete"


@pytest.mark.usefixtures("home")
def test_classes_are_numbered_as_written() -> None:
    describe(CLINIC + 'classes = ["malignant", "benign"]')
    train = load().train
    assert {name.split("/")[0] for name, label in zip(train.names, train.labels, strict=True) if label == 0} == {
        "malignant"
    }


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(("pattern", "key"), [(r"patient(\d+)_", "3"), (r"patient\d+", "patient3")])
def test_groups_are_read_from_the_names(pattern: str, key: str) -> None:
    describe(CLINIC + f"group_key = 'patient'\ngroup = '{pattern}'")
    splits = load()
    groups = [set(part.groups) for part in splits.parts.values()]
    assert key in set().union(*groups)
    assert sum(map(len, groups)) == 10
    assert splits.rule == "70/10/20 stratified, grouped by patient"


def test_a_table_may_be_described(home: Path) -> None:
    lines = [
        f"images/{label}/patient{i // 2}_{i}.png,{label},{i // 2}"
        for label in ("benign", "malignant")
        for i in range(20)
    ]
    (home / "all.csv").write_text("\n".join(["image,label,group", *lines]))
    describe(CLINIC.replace("images", "all.csv") + 'task = "ordinal"')
    dataset = availability.open_dataset("clinic")
    assert (dataset.card.task, dataset.card.group_key) == ("ordinal", "group")
    assert np.bincount(load().test.labels).tolist() == [4, 4]


def test_several_labels_an_image_stand_in_a_table(home: Path) -> None:
    labels = ["effusion|mass", "mass", "", "effusion"] * 10
    files = sorted(home.glob("images/*/*.png"))
    lines = [f"{file.relative_to(home)},{label}" for file, label in zip(files, labels, strict=True)]
    (home / "all.csv").write_text("\n".join(["image,label", *lines]))
    describe(CLINIC.replace("images", "all.csv") + 'task = "multi_label"')
    splits = load()
    given = {
        name: label
        for part in splits.parts.values()
        for name, label in zip(part.names, part.labels.tolist(), strict=True)
    }
    assert availability.open_dataset("clinic").card.classes == ("effusion", "mass")
    assert [given[line.split(",")[0]] for line in lines[:4]] == [[1, 1], [0, 1], [0, 0], [1, 0]]
    assert splits.train.labels.shape == (28, 2)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("joined", ["x;y", "x, y", "x y", "y/x"])
def test_labels_that_another_sign_separates_are_refused(joined: str) -> None:
    rows = [f'images/benign/patient{i // 2}_{i}.png,"{["x", "y", joined, ""][i % 4]}"' for i in range(20)]
    Path("all.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    describe(CLINIC.replace("images", "all.csv") + 'task = "multi_label"')
    with pytest.raises(DataError, match=r"lines 4, 8, 12, 16, 20: labels that \| does not separate\. Write `a\|b`"):
        load()


@pytest.mark.usefixtures("home")
def test_a_table_without_any_label_is_refused() -> None:
    rows = [f"images/benign/patient{i // 2}_{i}.png," for i in range(20)]
    Path("all.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    describe(CLINIC.replace("images", "all.csv") + 'task = "multi_label"')
    with pytest.raises(DataError, match="no image has a label"):
        load()


def test_a_missing_folder_is_reported_in_the_list(home: Path) -> None:
    describe(CLINIC.replace("images", "nowhere"))
    assert availability.describe_presence("clinic", home) == "no"


def test_fewer_images_than_stated_are_incomplete(home: Path) -> None:
    describe(CLINIC + "sizes = { total = 50 }")
    assert availability.describe_presence("clinic", home) == "incomplete (40 of 50)"


def test_a_description_names_the_columns_and_orders_the_classes(home: Path) -> None:
    rows = [f"{i}.png,{('bad', 'good', 'worse')[i % 3]},p{i}" for i in range(60)]
    for row in rows:
        (home / row.split(",")[0]).write_text(row)
    (home / "list.csv").write_text("\n".join(["File,DX,who", *rows]))
    columns = 'image_column = "file"\nlabel_column = "dx"\ngroup_column = "who"\n'
    describe('title = "Clinic"\npath = "list.csv"\nclasses = ["good", "bad", "worse"]\n' + columns)
    splits = load()
    assert splits.train.groups[0].startswith("p")
    found = [pair for part in splits.parts.values() for pair in zip(part.names, part.labels.tolist(), strict=True)]
    assert min(found) == ("0.png", 1)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("title = 'x'", CatalogueError, r"clinic\.toml: key 'path' must be given"),
        (CLINIC + "colour = 1", CatalogueError, "key 'colour' must be left out"),
        (CLINIC + "classes = ['benign']", DataError, "`classes` must list the class folders of .*: benign, malignant"),
        (CLINIC + "task = 'multi_label'", CatalogueError, 'task = "multi_label" needs a table'),
        (CLINIC + "group = '('", CatalogueError, "`group` is not a valid regular expression"),
        (CLINIC + "group = 'eye'", DataError, "`group` does not match the path 'benign/patient0_0.png'"),
    ],
)
def test_a_description_that_cannot_be_used_is_named(text: str, error: type[Exception], message: str) -> None:
    describe(text)
    with pytest.raises(error, match=message):
        load()


@pytest.mark.usefixtures("home")
def test_a_name_that_is_taken_is_refused() -> None:
    describe(CLINIC, "busi")
    with pytest.raises(CatalogueError, match=r"'busi' is the name of a built-in data set; rename the file"):
        catalogue_files.dataset_names()
    Path("datasets/busi.toml").rename("datasets/folder.toml")
    with pytest.raises(PluginError, match="called 'folder' already"):
        registry("datasets").names()


@pytest.mark.usefixtures("home")
def test_a_copy_of_the_catalogue_describes_nothing_new() -> None:
    describe((catalogue_files.folder_of("datasets") / "busi.toml").read_text(), "busi")
    assert catalogue_files.own_datasets() == {}
    assert catalogue.dataset_entry("busi").sizes == {"total": 780}


def test_the_positive_class_is_one_of_two(home: Path) -> None:
    describe(CLINIC + 'positive = "benign"')
    assert catalogue.dataset_card("clinic").positive == "benign"
    assert availability.open_dataset("clinic").card.positive_index == 0
    describe(CLINIC + 'positive = "normal"')
    with pytest.raises(DataError, match="clinic: positive must be one of two classes, got 'normal'; it has"):
        images.load("clinic", 0, Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), studies.places(home))
