from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from peftbench.datasets.limuc import patient, plugin
from peftbench.errors import DataError, MissingDataError

GRADES = tuple(f"Mayo {grade}" for grade in range(4))


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"{folder.name} {name}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty patients with an image of each grade, and two others for test."""
    for part, patients in {"train_and_validation_sets": range(1, 21), "test_set": (101, 102)}.items():
        for grade, name in enumerate(GRADES):
            write(tmp_path / "limuc" / part / name, *(f"UC_patient_{p}_{grade + 1}.bmp" for p in patients))
    return tmp_path


def write_fold(root: Path, number: int, patients: tuple[int, ...]) -> None:
    names = {name: [f"UC_patient_{p}_{grade + 1}.bmp" for p in patients] for grade, name in enumerate(GRADES)}
    folder = root / f"limuc/labeled-images/cross_validation_folds_train_val_info/fold_{number}"
    folder.mkdir(parents=True)
    (folder / "val.json").write_text(json.dumps(names))


def test_grades_are_folders_in_order(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    assert plugin.card.task == "ordinal"
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert splits.notes == ("Incomplete copy: 88 of 11276 images are here.",)


def test_validation_is_a_tenth_of_the_patients(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    assert splits.carved
    assert splits.rule == "official test, 10% of the others for validation, grouped by patient"
    assert np.bincount(splits.val.labels).tolist() == [2, 2, 2, 2]
    assert len(set(splits.val.groups)) == 2
    assert not set(splits.train.groups) & set(splits.val.groups)


@pytest.mark.parametrize("seed", [3, 13])
def test_validation_is_the_official_fold_of_the_seed_where_the_lists_are(root: Path, seed: int) -> None:
    write_fold(root, 3, (5, 6, 7))
    splits = plugin.load(root, seed)
    assert splits.rule == "official test, fold 3 of the official 10 for validation, grouped by patient"
    assert set(splits.val.groups) == {"patient_5", "patient_6", "patient_7"}
    assert len(splits.train) == 68


@pytest.mark.parametrize("text", ["[]", '{"Mayo 0": ["UC_patient_999_1.bmp"]}'])
def test_a_fold_that_cannot_be_used_is_named(text: str, root: Path) -> None:
    write_fold(root, 0, ())
    file = next(root.rglob("val.json"))
    file.write_text(text)
    with pytest.raises(DataError, match=r"fold_0.val\.json"):
        plugin.load(root, seed=0)


def test_the_patient_is_read_from_the_name() -> None:
    assert patient("UC_patient_155_28.bmp") == "patient_155"
    with pytest.raises(DataError, match="must have the form UC_patient_NUMBER_NUMBER"):
        patient("scan.bmp")


def test_a_patient_in_train_and_test_is_reported(root: Path) -> None:
    write(root / "limuc/test_set/Mayo 1", "UC_patient_3_9.bmp")
    assert [note for note in plugin.load(root, seed=0).notes if note.startswith("1 patient is in both")]


def test_the_two_zips_of_the_record_are_unpacked(root: Path) -> None:
    home = root / "limuc"
    for part in ("train_and_validation_sets", "test_set"):
        shutil.make_archive(str(home / part), "zip", home, part)
        shutil.rmtree(home / part)
    (home / "patient_based_classified_images.zip").write_text("not needed, and never opened")
    assert str(plugin.presence(root)) == "packed, unpacked when first used"
    assert len(plugin.load(root, seed=0).test) == 8
    assert plugin.presence(root).found == 88


def test_each_zip_may_be_unpacked_into_a_folder_of_its_name(root: Path) -> None:
    home = root / "limuc"
    before = plugin.load(root, seed=0)
    for part in ("train_and_validation_sets", "test_set"):
        (home / part).rename(home / "moved")
        (home / part).mkdir()
        (home / "moved").rename(home / part / part)
    after = plugin.load(root, seed=0)
    assert after.test.labels.tolist() == before.test.labels.tolist()
    assert after.train.groups == before.train.groups


def test_a_missing_grade_is_named(root: Path) -> None:
    shutil.rmtree(root / "limuc/test_set/Mayo 3")
    with pytest.raises(MissingDataError, match=r"lacks test_set/Mayo 3\. Download"):
        plugin.load(root, seed=0)


def test_the_real_lists(data_root: Path, tmp_path: Path) -> None:
    lists = data_root / "limuc/cross_validation_folds_train_val_info"
    if not lists.is_dir():
        pytest.skip(f"no {lists}")
    shutil.copytree(lists, tmp_path / "limuc" / lists.name)
    for part in ("train", "val"):
        for grade, names in json.loads((lists / f"fold_0/{part}.json").read_text()).items():
            write(tmp_path / "limuc/train_and_validation_sets" / grade, *names)
    for grade in GRADES:
        write(tmp_path / "limuc/test_set" / grade, "UC_patient_9999_1.bmp")
    splits = plugin.load(tmp_path, seed=0)
    both = np.bincount(splits.train.labels) + np.bincount(splits.val.labels)
    assert both.tolist() == [5180, 2588, 1077, 745]
    assert (len(set(splits.train.groups)), len(set(splits.val.groups))) == (429, 49)
    assert not [note for note in splits.notes if "train and val" in note]
