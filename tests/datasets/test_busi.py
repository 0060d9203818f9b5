from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from peftbench.core.contract import Splits
from peftbench.datasets.busi import near_duplicates, plugin
from peftbench.errors import BrokenImagesError, MissingDataError

CLASSES = ("benign", "malignant", "normal")


def draw(file: Path, seed: int) -> None:
    """A smooth random picture: blobs, as thumbnails of noise would all be grey."""
    file.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)
    Image.fromarray(coarse).resize((60, 48), Image.Resampling.BICUBIC).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small BUSI in its published layout: 20 images per class and their masks, no two alike."""
    for label, name in enumerate(CLASSES):
        for number in range(1, 21):
            folder = tmp_path / "busi/Dataset_BUSI_with_GT" / name
            draw(folder / f"{name} ({number}).png", seed=100 * label + number)
            draw(folder / f"{name} ({number})_mask.png", seed=0)
    draw(tmp_path / "busi/Dataset_BUSI_with_GT/benign/benign (4)_mask_1.png", seed=0)
    return tmp_path


def image(root: Path, name: str) -> Path:
    return root / "busi/Dataset_BUSI_with_GT" / name.split(maxsplit=1)[0] / f"{name}.png"


def part_of(splits: Splits, name: str) -> str:
    return next(part for part, found in splits.parts.items() if any(name in image for image in found.names))


def test_masks_are_no_images(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    names = [name for part in splits.parts.values() for name in part.names]
    assert len(names) == 60
    assert not [name for name in names if "mask" in name]
    assert splits.notes == ("Incomplete copy: 60 of 780 images are here.",)


def test_seventy_ten_twenty_of_every_class(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    assert [np.bincount(part.labels).tolist() for part in splits.parts.values()] == [[14] * 3, [2] * 3, [4] * 3]


def test_near_duplicates_stay_in_one_part_at_every_seed(root: Path) -> None:
    with Image.open(image(root, "benign (1)")) as original:
        ImageEnhance.Brightness(original).enhance(0.8).save(image(root, "benign (2)"))
    for splits in [plugin.load(root, seed) for seed in range(5)]:
        assert part_of(splits, "benign (1)") == part_of(splits, "benign (2)")
        assert "Pairs of near duplicates, each kept in one part: 1, 0 of them across classes." in splits.notes


def test_identical_files_of_two_classes_stay_in_one_part_and_are_reported(root: Path) -> None:
    shutil.copy(image(root, "benign (3)"), image(root, "malignant (5)"))
    splits = plugin.load(root, seed=0)
    assert part_of(splits, "benign (3)") == part_of(splits, "malignant (5)")
    assert "Byte-identical images with contradicting labels, kept in one part: 1." in splits.notes


def test_an_image_of_one_grey_is_near_to_nothing(tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.new("L", (40, 40), 7).save(file)
    assert near_duplicates(files) == []


def test_an_image_that_does_not_open_is_named(root: Path) -> None:
    image(root, "normal (7)").write_bytes(b"no image")
    with pytest.raises(BrokenImagesError, match=r"Cannot decode .*normal \(7\)\.png"):
        plugin.load(root, seed=0)


def test_a_missing_class_folder_is_named(root: Path) -> None:
    shutil.rmtree(root / "busi/Dataset_BUSI_with_GT/normal")
    with pytest.raises(MissingDataError, match=r"Dataset_BUSI_with_GT lacks normal\. Download"):
        plugin.load(root, seed=0)


def test_the_real_images(data_root: Path) -> None:
    if not (data_root / "busi").is_dir():
        pytest.skip(f"no BUSI in {data_root}")
    splits = plugin.load(data_root, seed=0)
    counts = [np.bincount(part.labels).tolist() for part in splits.parts.values()]
    assert counts == [[306, 147, 93], [44, 21, 13], [87, 42, 27]]
    assert part_of(splits, "benign (433)") == part_of(splits, "malignant (145)")
    assert splits.notes == (
        "The SH-PEFT paper states train 559, val 79, test 160 images; this copy has 546/78/156.",
        "Pairs of near duplicates, each kept in one part: 70, 5 of them across classes.",
        "Byte-identical images with contradicting labels, kept in one part: 1.",
    )
