from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from peftbench.core.catalogue import dataset_entry
from peftbench.datasets import _medmnist
from peftbench.datasets.medmnist import plugin
from peftbench.errors import DataError, MissingDataError, RequestError, UnknownNameError
from tests.datasets.medmnist_files import write_set

TWELVE = sorted(dataset_entry("medmnist").members)


@pytest.mark.parametrize("name", TWELVE)
def test_each_of_the_twelve_has_a_card_and_four_checksums(name: str) -> None:
    card, files = plugin(name, 64).card, [_medmnist.file_of(Path(), name, side).name for side in _medmnist.SIDES]
    assert card.title.lower() == name
    assert card.task == {"chestmnist": "multi_label", "retinamnist": "ordinal"}.get(name, "single")
    assert all(dataset_entry("medmnist").checksums[file].startswith("md5:") for file in files)
    assert len(TWELVE) == 12


@pytest.mark.parametrize("side", _medmnist.SIDES)
def test_parts_are_the_published_ones(side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_set(tmp_path, "pathmnist", side, monkeypatch)
    splits = plugin("pathmnist", side).load(tmp_path, seed=0)
    with np.load(file) as stored:
        for name, part in splits.parts.items():
            assert np.array_equal(np.asarray(part.images), stored[f"{name}_images"])
            assert part.labels.tolist() == stored[f"{name}_labels"][:, 0].tolist()
    assert splits.rule == "official"
    assert splits.notes == (
        "Incomplete copy: 90 of 107180 images are here.",
        f"These are PathMNIST's images of {side} x {side} pixels.",
        _medmnist.NO_GROUPS,
    )


def test_greys_become_three_equal_channels_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "breastmnist", 28, monkeypatch)
    images = plugin("breastmnist").load(tmp_path, seed=0).train.images
    assert isinstance(images, np.ndarray)
    assert images.shape == (30, 28, 28, 3)
    assert images.strides[-1] == 0
    assert np.array_equal(images[..., 0], images[..., 2])


def test_a_choice_of_greys_holds_one_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "breastmnist", 28, monkeypatch)
    train = plugin("breastmnist").load(tmp_path, seed=0).train
    some = train.take([3, 1]).images
    assert isinstance(some, np.ndarray)
    assert some.strides[-1] == 0
    assert np.array_equal(some, np.asarray(train.images)[[3, 1]])
    assert train.take(range(30)).images is train.images  # which may be larger than the memory


def test_several_labels_an_image_are_a_table_of_zeros_and_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "chestmnist", 28, monkeypatch)
    train = plugin("chestmnist").load(tmp_path, seed=0).train
    assert train.labels.shape == (30, 14)
    assert train.labels.dtype == np.int64
    assert set(np.unique(train.labels)) == {0, 1}
    assert train.labels[0].all()


def test_a_file_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_set(tmp_path, "retinamnist", 28, monkeypatch)
    plugin("retinamnist").load(tmp_path, seed=0)
    file.unlink()
    assert len(plugin("retinamnist").load(tmp_path, seed=1).test) == 30
    assert plugin("retinamnist").presence(tmp_path).found == 90


def test_a_file_of_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_set(tmp_path, "bloodmnist", 28, monkeypatch)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(DataError, match=r"bloodmnist\.npz does not match the checksum published by MedMNIST"):
        plugin("bloodmnist").load(tmp_path, seed=0)


def test_labels_out_of_range_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "bloodmnist", 28, monkeypatch)
    plugin("bloodmnist").load(tmp_path, seed=0)
    np.save(tmp_path / "medmnist/bloodmnist/val_labels.npy", np.full((30, 1), 8, np.uint8))
    with pytest.raises(DataError, match="does not match the published set"):
        plugin("bloodmnist").load(tmp_path, seed=0)


def test_a_pickled_array_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "bloodmnist", 28, monkeypatch)
    plugin("bloodmnist").load(tmp_path, seed=0)
    np.save(tmp_path / "medmnist/bloodmnist/val_labels.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"Cannot read .*val_labels\.npy"):
        plugin("bloodmnist").load(tmp_path, seed=0)


def test_a_missing_size_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "pathmnist", 28, monkeypatch)
    with pytest.raises(MissingDataError, match=r"pathmnist_128\.npz does not exist\. Run `peftbench data fetch"):
        plugin("pathmnist", 128).load(tmp_path, seed=0)
    assert str(plugin("pathmnist", 128).presence(tmp_path)) == "no"


def test_the_group_is_every_set_that_is_here_at_its_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "retinamnist", 28, monkeypatch)
    write_set(tmp_path, "breastmnist", 28, monkeypatch)
    write_set(tmp_path, "breastmnist", 64, monkeypatch)
    assert plugin.here(tmp_path) == ("medmnist:retinamnist[size=28]", "medmnist:breastmnist[size=64]")


def test_unknown_names_and_sizes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean pathmnist"):
        plugin("pathminst")
    with pytest.raises(RequestError, match="size must be 28, 64, 128 or 224"):
        plugin("pathmnist", 32)
