from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from peftbench.datasets.chest_xray import label_and_patient, plugin
from peftbench.errors import DataError, MissingDataError


def write(home: Path, *names: str) -> None:
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small copy in the published layout: 30 normal train images, 20 bacterial and 20 viral of 10 patients each."""
    home = tmp_path / "chest_xray/chest_xray"
    write(home, *(f"train/NORMAL/IM-{i:04}-0001.jpeg" for i in range(30)))
    write(home, *(f"train/PNEUMONIA/person{i // 2}_bacteria_{i}.jpeg" for i in range(20)))
    write(home, *(f"train/PNEUMONIA/person{i // 2}_virus_{i}.jpeg" for i in range(20)))
    write(home, "test/NORMAL/IM-0001-0001.jpeg", "test/NORMAL/NORMAL2-IM-0001-0001.jpeg")
    write(home, "test/PNEUMONIA/person1_bacteria_1.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg")
    return tmp_path


def test_the_kind_of_pneumonia_is_read_from_the_name(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    assert splits.test.labels.tolist() == [0, 0, 1, 2]
    assert np.bincount(splits.train.labels).tolist() == [27, 18, 18]
    assert np.bincount(splits.val.labels).tolist() == [3, 2, 2]


def test_validation_is_whole_patients_cut_off_train(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    assert splits.carved
    assert not set(splits.train.groups) & set(splits.val.groups)
    assert {name.split("/")[0] for name in splits.val.names} == {"train"}


@pytest.mark.parametrize(
    ("name", "label", "patient"),
    [
        ("train/NORMAL/IM-0115-0001.jpeg", 0, "train/normal/IM-0115"),
        ("train/NORMAL/NORMAL2-IM-0115-0001-0002.jpeg", 0, "train/normal/NORMAL2-IM-0115"),
        ("train/PNEUMONIA/person12_bacteria_46.jpeg", 1, "train/bacteria/person12"),
        ("train/PNEUMONIA/person12_virus_46_1.jpeg", 2, "train/virus/person12"),
        ("test/PNEUMONIA/person12_virus_46.jpeg", 2, "test/virus/person12"),
        ("val/PNEUMONIA/person1946_bacteria_4874.jpeg", 1, "train/bacteria/person1946"),
    ],
)
def test_numbers_of_patients_of_the_kaggle_copy_restart_in_every_folder_and_kind(
    name: str, label: int, patient: str
) -> None:
    assert label_and_patient(name) == (label, patient)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("train/NORMAL/NORMAL-1003233-0001.jpeg", 0),
        ("train/PNEUMONIA/BACTERIA-1003233-0001.jpeg", 1),
        ("test/PNEUMONIA/VIRUS-1003233-0002.jpeg", 2),
    ],
)
def test_in_the_original_release_a_patient_is_known_everywhere(name: str, label: int) -> None:
    assert label_and_patient(name) == (label, "patient 1003233")


def test_identical_files_of_two_patients_join_them(root: Path) -> None:
    folder = root / "chest_xray/chest_xray/train/PNEUMONIA"
    shutil.copy(folder / "person0_virus_0.jpeg", folder / "person5_virus_10.jpeg")
    splits = plugin.load(root, seed=0)
    groups = {
        name: group for part in splits.parts.values() for name, group in zip(part.names, part.groups, strict=True)
    }
    patients = [f"train/PNEUMONIA/person{i // 2}_virus_{i}.jpeg" for i in (0, 1, 10, 11)]
    assert {groups[name] for name in patients} == {"train/virus/person0"}


def test_an_image_in_train_and_test_is_reported(root: Path) -> None:
    home = root / "chest_xray/chest_xray"
    shutil.copy(home / "train/NORMAL/IM-0003-0001.jpeg", home / "test/NORMAL/IM-0001-0001.jpeg")
    notes = [plugin.load(root, seed).notes[-1] for seed in range(3)]
    assert set(notes) <= {f"1 patient is in both {part} and test (2 images)." for part in ("train", "val")}


def test_the_val_folder_of_the_kaggle_copy_joins_train(root: Path) -> None:
    write(root / "chest_xray/chest_xray", "val/NORMAL/NORMAL2-IM-1427-0001.jpeg", "val/PNEUMONIA/person99_virus_1.jpeg")
    splits = plugin.load(root, seed=0)
    assert len(splits.train) + len(splits.val) == 72
    assert "The 2 images of the val folder joined train." in splits.notes


def test_a_name_without_a_label_is_refused(root: Path) -> None:
    write(root / "chest_xray/chest_xray", "train/PNEUMONIA/scan.jpeg")
    with pytest.raises(DataError, match=r"train/PNEUMONIA/scan.jpeg: .* must contain bacteria or virus"):
        plugin.load(root, seed=0)


def test_a_missing_test_folder_is_named(root: Path) -> None:
    shutil.rmtree(root / "chest_xray/chest_xray/test")
    with pytest.raises(MissingDataError, match=r"lacks test/NORMAL, test/PNEUMONIA\. Download ChestXRay2017.zip"):
        plugin.load(root, seed=0)


def test_the_real_images(data_root: Path) -> None:
    if not (data_root / "chest_xray").is_dir():
        pytest.skip(f"no chest X-rays in {data_root}")
    splits = plugin.load(data_root, seed=0)
    both = np.bincount(splits.train.labels) + np.bincount(splits.val.labels)
    assert both.tolist() == [1341, 2530, 1345]
    assert np.bincount(splits.test.labels).tolist() == [234, 242, 148]
    assert np.abs(np.bincount(splits.val.labels) - 0.1 * both).max() < 1
    assert splits.notes[0] == "This copy has 5840 images; 5856 were published."
    assert splits.notes[1].startswith("The SH-PEFT paper states train 4708, val 524, test 1248 images; this copy has ")
    assert len(splits.notes) == 2
