from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftbench.datasets.chaoyang import plugin, slide
from peftbench.errors import DataError, MissingDataError


def write(home: Path, part: str, entries: list[dict[str, Any]]) -> None:
    """A list under its published name, and a stand-in for each picture it names."""
    (home / part).mkdir(parents=True, exist_ok=True)
    (home / f"{part}.json").write_text(json.dumps(entries))
    for entry in entries:
        (home / entry["name"]).write_text(entry["name"])


def entry(part: str, slide_number: int, patch: int, label: int) -> dict[str, Any]:
    name = f"{part}/{slide_number}-IMG{patch:03}x002-{label}.JPG"
    return {"name": name, "label": label, "label_A": label, "label_B": 0, "label_C": label}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten training slides of eight patches, two of each class, and a test slide."""
    home = tmp_path / "chaoyang"
    write(home, "train", [entry("train", 500 + s, p, p % 4) for s in range(10) for p in range(8)])
    write(home, "test", [entry("test", 535940, p, p % 4) for p in range(4)])
    return tmp_path


def test_labels_are_those_of_the_lists(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    assert plugin.card.classes == ("normal", "serrated", "adenocarcinoma", "adenoma")
    assert splits.test.labels.tolist() == [0, 1, 2, 3]
    assert splits.test.names[2] == "test/535940-IMG002x002-2.JPG"
    assert splits.notes[0] == "Incomplete copy: 84 of 6160 images are here."


def test_validation_is_whole_slides_cut_off_train(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    assert splits.carved
    assert [len(part) for part in splits.parts.values()] == [72, 8, 4]
    assert len(set(splits.val.groups)) == 1
    assert not set(splits.train.groups) & set(splits.val.groups)


def test_a_slide_in_train_and_test_is_reported(root: Path) -> None:
    write(root / "chaoyang", "test", [entry("test", 500, p, p % 4) for p in range(4)])
    notes = plugin.load(root, seed=0).notes
    assert [note for note in notes if note.startswith("1 slide is in both")]


@pytest.mark.parametrize(
    ("name", "key"),
    [("train/353042_4-IMG005x014-1.JPG", "353042_4"), ("test/535940-IMG009x022-2.JPG", "535940")],
)
def test_the_slide_is_what_stands_before_the_patch(name: str, key: str) -> None:
    assert slide(name) == key


def test_listed_images_that_are_not_there_are_left_out(root: Path) -> None:
    (root / "chaoyang/test/535940-IMG000x002-0.JPG").unlink()
    splits = plugin.load(root, seed=0)
    assert splits.test.labels.tolist() == [1, 2, 3]
    assert "Incomplete copy: 83 of 6160 images are here." in splits.notes
    assert plugin.presence(root).found == 83


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "the file: Invalid JSON"),
        ('[{"name": "test/a.JPG"}]', r"0\.label: Field required"),
        ('[{"name": "test/a.JPG", "label": 4}]', "not an image with a label from 0 to 3"),
        ('[{"name": "../../a.JPG", "label": 1}]', "not an image with a label from 0 to 3"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(text: str, message: str, root: Path) -> None:
    (root / "chaoyang/test.json").write_text(text)
    with pytest.raises(DataError, match=rf"test\.json: .*{message}"):
        plugin.load(root, seed=0)


def test_an_error_about_a_missing_list_states_how_to_get_the_data(root: Path) -> None:
    (root / "chaoyang/test.json").unlink()
    assert str(plugin.presence(root)) == "no"
    with pytest.raises(MissingDataError, match=r"lacks test\.json\. Request the data"):
        plugin.load(root, seed=0)


def test_the_real_training_list(data_root: Path, tmp_path: Path) -> None:
    file = data_root / "chaoyang/train_label.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    write(tmp_path / "chaoyang", "train", json.loads(file.read_text()))
    write(tmp_path / "chaoyang", "test", [entry("test", 535940, p, p % 4) for p in range(4)])
    splits = plugin.load(tmp_path, seed=0)
    both = np.bincount(splits.train.labels) + np.bincount(splits.val.labels)
    assert both.tolist() == [1111, 842, 1404, 664]
    assert len(set(splits.train.groups) | set(splits.val.groups)) == 102
    assert 350 < len(splits.val) < 450
