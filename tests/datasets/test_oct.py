from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from peftbench.core.contract import Presence
from peftbench.datasets import _files, _medmnist
from peftbench.datasets.oct import FOLDERS, patient, plugin
from peftbench.errors import DataError, MissingDataError
from tests.datasets.medmnist_files import write_set


def write(home: Path, part: str, patients: range, images: int = 2) -> None:
    for label, name in enumerate(FOLDERS):
        (home / part / name).mkdir(parents=True, exist_ok=True)
        for number in patients:
            for i in range(images):
                (home / part / name / f"{name}-{100 * label + number}-{i}.jpeg").write_text(f"{part} {number} {i}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten training patients a class with two images, two test patients a class."""
    write(tmp_path / "oct/OCT2017", "train", range(10))
    write(tmp_path / "oct/OCT2017", "test", range(50, 52))
    return tmp_path


def test_validation_is_whole_patients_cut_off_train(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    assert splits.carved
    assert [np.bincount(part.labels).tolist() for part in splits.parts.values()] == [[18] * 4, [2] * 4, [4] * 4]
    assert not set(splits.train.groups) & set(splits.val.groups)


def test_the_val_folder_of_the_kaggle_copy_joins_test(root: Path) -> None:
    write(root / "oct/OCT2017", "val", range(60, 61))
    splits = plugin.load(root, seed=0)
    assert len(splits.test) == 24
    assert "The 8 images of the val folder joined test." in splits.notes


def test_a_patient_in_train_and_test_is_reported(root: Path) -> None:
    write(root / "oct/OCT2017", "test", range(3, 4), images=1)
    notes = plugin.load(root, seed=0).notes
    assert [note for note in notes if "patients are in both train and test" in note]


def test_a_patient_keeps_the_number_in_every_class() -> None:
    assert patient("CNV-1016042-1.jpeg") == patient("NORMAL-1016042-17.jpeg") == "1016042"
    with pytest.raises(DataError, match="must have the form CLASS-PATIENT-NUMBER"):
        patient("scan.jpeg")


def test_the_release_is_unpacked_where_it_lies(root: Path) -> None:
    home = root / "oct"
    with tarfile.open(home / "OCT2017.tar.gz", "w:gz") as packed:
        packed.add(home / "OCT2017", "OCT2017")
    shutil.rmtree(home / "OCT2017")
    assert plugin.presence(root).packed
    assert len(plugin.load(root, seed=0).test) == 16


def test_octmnist_stands_in_where_the_release_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "octmnist", 224, monkeypatch, images=8)
    splits = plugin.load(tmp_path, seed=0)
    assert plugin.presence(tmp_path) == Presence(24, 109309)
    assert splits.rule == "official (OCTMNIST)"
    assert splits.train.names[0] == "octmnist/train/0"
    assert splits.notes[0] == "Incomplete copy: 24 of 109309 images are here."
    assert splits.notes[1:] == ("These are OCTMNIST's images of 224 x 224 pixels.", _medmnist.NO_GROUPS)


def test_octmnist_goes_before_a_sample_of_the_release(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(root, "octmnist", 224, monkeypatch, images=8)  # packed, so that its checksum covers all of it
    assert plugin.presence(root).complete
    assert plugin.load(root, seed=0).rule == "official (OCTMNIST)"


def test_the_whole_release_goes_before_octmnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(root, "octmnist", 224, monkeypatch, images=8)
    monkeypatch.setattr(_files, "published_count", lambda _name: 96)
    assert plugin.load(root, seed=0).rule.startswith("official train and test")
    assert plugin.presence(root).found == 96


def test_missing_data_name_how_to_get_them(tmp_path: Path) -> None:
    assert str(plugin.presence(tmp_path)) == "no"
    with pytest.raises(MissingDataError, match=r"oct does not exist\. Download OCT2017\.tar\.gz"):
        plugin.load(tmp_path, seed=0)


def test_the_real_sample_is_known_as_incomplete(data_root: Path) -> None:
    if not (data_root / "oct").is_dir():
        pytest.skip(f"no OCT sample in {data_root}")
    splits = plugin.load(data_root, seed=0)
    assert str(plugin.presence(data_root)) == "incomplete (137 of 84,484)"
    assert splits.notes[0] == "Incomplete copy: 137 of 84484 images are here."
    assert sum(len(part) for part in splits.parts.values()) == 137
    assert np.bincount(splits.test.labels).tolist() == [22, 23, 23, 23]
