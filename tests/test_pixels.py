"""From image files of every kind to standardised batches, by way of a cache that two processes may fill at once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from peftbench import pixels
from peftbench.contract import Card, Part, Preprocessing, Splits
from peftbench.errors import BrokenImagesError, DataError
from peftbench.pixels import Features, Images, augment, decode, find, order, prepare

ROOT = Path(__file__).parents[1]
SMALL = Preprocessing(8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CARD = Card("Drawn", "none", ("a", "b"), "none", "drawn for a test")
Pixels = NDArray[np.uint8]


def photo(seed: int = 0, side: int = 8) -> Pixels:
    """Colours at random (side, side, 3)."""
    return np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)


def part(files: Sequence[Path]) -> Part:
    names = tuple(file.name for file in files)
    return Part(list(files), np.arange(len(files)) % 2, names, names)


def splits(folder: Path, images: tuple[int, int, int] = (4, 2, 3)) -> Splits:
    """PNG files, each of another content."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{i}.png" for i in range(sum(images))]
    for i, file in enumerate(files):
        Image.fromarray(photo(i)).save(file)
    first, second = images[0], images[0] + images[1]
    return Splits(part(files[:first]), part(files[first:second]), part(files[second:]), "as drawn", ("a note",))


def opened(file: Path) -> Pixels:
    """As decoded (3, 8, 8); the file must open."""
    found, bad = decode(part([file]), SMALL)
    assert bad == []
    first: Pixels = found[0]
    return first


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "YCbCr"])
def test_colour_images_of_every_mode(mode: str, tmp_path: Path) -> None:
    file = tmp_path / "x.tif"
    Image.fromarray(photo()).convert(mode).save(file)
    rough = 0 if "RGB" in mode else 3  # of rounding
    assert np.abs(opened(file).astype(int) - photo().transpose(2, 0, 1)).max() <= rough


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_becomes_three_equal_channels(mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(photo()[..., 0])
    grey.convert(mode).save(tmp_path / "x.png")
    assert np.array_equal(opened(tmp_path / "x.png"), np.stack([photo()[..., 0]] * 3))


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80\xff"])
def test_palettes_with_and_without_transparency(transparency: Any, tmp_path: Path) -> None:
    picture = Image.fromarray(photo() // 128 * 255).convert("P", palette=Image.Palette.ADAPTIVE)
    options = {} if transparency is None else {"transparency": transparency}
    picture.save(tmp_path / "x.png", **options)
    assert np.array_equal(opened(tmp_path / "x.png"), np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


def test_transparency_is_dropped_not_painted(tmp_path: Path) -> None:
    clear = np.concatenate([photo(), np.zeros((8, 8, 1), np.uint8)], axis=2)
    Image.fromarray(clear).save(tmp_path / "x.png")
    assert np.array_equal(opened(tmp_path / "x.png"), photo().transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_upper_eight(suffix: str, tmp_path: Path) -> None:
    """Pillow alone would make everything above 255 white."""
    deep = np.random.default_rng(0).integers(2**16, size=(8, 8), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"x{suffix}")
    assert np.array_equal(opened(tmp_path / f"x{suffix}")[0], (deep // 256).astype(np.uint8))


def test_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(photo()[..., 0]).convert("1").save(tmp_path / "x.png")
    assert set(np.unique(opened(tmp_path / "x.png"))) == {0, 255}


def test_a_jpeg_that_is_called_png_opens(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").rename(tmp_path / "x.png")
    assert np.abs(opened(tmp_path / "x.png").astype(int) - 77).max() <= 1


def test_images_in_memory_are_decoded_alike(tmp_path: Path) -> None:
    Image.fromarray(photo(side=20)).save(tmp_path / "x.png")
    in_memory = Part(photo(side=20)[None], np.array([0]), ("x",), ("x",))
    assert np.array_equal(decode(in_memory, SMALL)[0][0], opened(tmp_path / "x.png"))


@pytest.mark.parametrize(("fit", "right_edge"), [("squash", 255), ("crop", 0)])
def test_squash_keeps_the_whole_image_and_crop_its_middle(fit: Any, right_edge: int) -> None:
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 48:] = 255
    shown, _ = decode(Part(wide[None], np.array([0]), ("x",), ("x",)), replace(SMALL, fit=fit))
    assert shown[0, 0, 0, -1] == right_edge


@pytest.mark.parametrize("size", [(31, 8), (8, 31), (3, 5), (100, 99)])
def test_a_crop_is_filled_whatever_the_shape(size: tuple[int, int]) -> None:
    shown, bad = decode(
        Part(np.full((1, *size, 3), 9, np.uint8), np.array([0]), ("x",), ("x",)), replace(SMALL, fit="crop")
    )
    assert not bad
    assert (shown == 9).all()


# --- broken images ---------------------------------------------------------------------------------------------------


def break_some(folder: Path) -> Splits:
    found = splits(folder)
    (folder / "1.png").write_bytes(b"no image")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:60])  # cut short
    (folder / "8.png").unlink()
    (folder / "8.png").write_bytes(b"")
    return found


def test_broken_images_are_counted_and_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenImagesError, match=r"^3 images do not open: 1\.png, 5\.png, 8\.png\. .*--skip-broken\.$"):
        prepare(CARD, break_some(tmp_path / "d"), SMALL, tmp_path / "c")


def test_broken_images_are_left_out_on_wish_and_that_is_noted(tmp_path: Path) -> None:
    whole = break_some(tmp_path / "d")
    data = prepare(CARD, whole, SMALL, tmp_path / "c", skip_broken=True)
    assert data.sizes == {"train": 3, "val": 1, "test": 2}
    assert data.names["train"] == ["0.png", "2.png", "3.png"]
    assert data.labels["train"].tolist() == [0, 0, 1]
    assert data.notes == ("a note", "3 broken images left out")
    assert np.array_equal(data.pixels("test")[1], photo(7).transpose(2, 0, 1))
    assert find(data.fingerprint, SMALL, tmp_path / "c").sizes == data.sizes


# --- the cache -------------------------------------------------------------------------------------------------------


def test_every_part_holds_its_own_images(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    for name, numbers in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 9))):
        assert np.array_equal(data.pixels(name), [photo(i).transpose(2, 0, 1) for i in numbers])
        assert data.names[name] == [f"{i}.png" for i in numbers]
    assert (data.card, data.rule, data.notes) == (CARD, "as drawn", ("a note",))
    assert isinstance(data.pixels("val"), np.memmap)


def test_a_part_may_be_empty(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d", (4, 0, 2)), SMALL, tmp_path / "c")
    assert data.sizes == {"train": 4, "val": 0, "test": 2}
    assert data.pixels("val").shape == (0, 3, 8, 8)
    assert np.array_equal(data.pixels("test")[1], photo(5).transpose(2, 0, 1))


def test_what_was_decoded_once_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = splits(tmp_path / "d")
    first = prepare(CARD, found, SMALL, tmp_path / "c")
    monkeypatch.setattr(pixels, "decode", None)
    second = prepare(CARD, found, SMALL, tmp_path / "c")
    assert first.folder == second.folder
    assert np.array_equal(first.pixels("train"), second.pixels("train"))


@pytest.mark.parametrize("change", [{"size": 16}, {"interpolation": "bilinear"}, {"fit": "crop"}])
def test_another_way_of_decoding_has_a_place_of_its_own(change: dict[str, Any], tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    first = prepare(CARD, found, SMALL, tmp_path / "c")
    assert prepare(CARD, found, replace(SMALL, **change), tmp_path / "c").folder != first.folder


def test_mean_and_spread_share_the_pixels(tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    first = prepare(CARD, found, SMALL, tmp_path / "c")
    assert prepare(CARD, found, replace(SMALL, mean=(0.0, 0.0, 0.0)), tmp_path / "c").folder == first.folder


def test_a_changed_image_is_decoded_anew(tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    before = prepare(CARD, found, SMALL, tmp_path / "c")
    Image.fromarray(photo(99)).save(tmp_path / "d/0.png")
    after = prepare(CARD, found, SMALL, tmp_path / "c")
    assert after.fingerprint != before.fingerprint
    assert np.array_equal(after.pixels("train")[0], photo(99).transpose(2, 0, 1))


def test_a_mended_card_is_believed_at_once(tmp_path: Path) -> None:
    found = splits(tmp_path / "d")
    prepare(CARD, found, SMALL, tmp_path / "c")
    mended = prepare(replace(CARD, licence="CC0"), replace(found, notes=()), SMALL, tmp_path / "c")
    assert (mended.card.licence, mended.notes) == ("CC0", ())


def test_only_the_owner_may_read_names_and_pixels(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    assert stat.S_IMODE(data.folder.stat().st_mode) == 0o700


def test_decoded_images_that_are_gone_are_missed_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run the study again"):
        find("0" * 64, SMALL, tmp_path)


TWO = """
import sys
from pathlib import Path
from tests.test_pixels import CARD, SMALL, splits, part
from peftbench.contract import Splits
from peftbench.pixels import prepare
folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
files = sorted(folder.iterdir())
print("ready", flush=True)
sys.stdin.readline()
data = prepare(CARD, Splits(part(files[:40]), part(files[40:50]), part(files[50:]), "x"), SMALL, cache)
print(data.folder, int(data.pixels("train").sum()), int(data.pixels("test").sum()))
"""


def test_two_processes_may_prepare_at_once(tmp_path: Path) -> None:
    splits(tmp_path / "d", (40, 10, 14))
    command = [sys.executable, "-c", TWO, str(tmp_path / "d"), str(tmp_path / "c")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] != ""
    assert len([*(tmp_path / "c/pixels").iterdir()]) == 1  # and no draft beside it


def test_who_comes_second_finds_the_first_ones_folder(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    pixels._store(data.folder, np.zeros(3, np.uint8), "{}")
    assert [*data.folder.parent.iterdir()] == [data.folder]
    assert np.array_equal(data.pixels("val")[0], photo(4).transpose(2, 0, 1))


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_standardised() -> None:
    raw = np.random.default_rng(0).integers(256, size=(5, 3, 8, 8), dtype=np.uint8)
    raw[0] = np.arange(192).reshape(3, 8, 8)
    mean, std = (np.asarray(v)[:, None, None] for v in (SMALL.mean, SMALL.std))
    found = Images(raw, SMALL, torch.device("cpu")).batch([3, 0, 3])
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - ((raw[[3, 0, 3]] / 255 - mean) / std)).max() < 1e-6


def test_a_batch_comes_from_the_memory_map(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    images = Images(data.pixels("train"), SMALL, torch.device("cpu"))
    assert len(images) == 4
    assert images.batch(np.array([2])).shape == (1, 3, 8, 8)


def test_features_come_by_position() -> None:
    features = Features(torch.arange(8.0).view(4, 2))
    assert len(features) == 4
    assert features.batch(np.array([3, 0])).tolist() == [[6, 7], [0, 1]]


# --- order -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 3), st.integers(1, 4))
def test_every_epoch_covers_every_image_once(images: int, batch: int, seed: int, epochs: int) -> None:
    steps = -(-epochs * images // batch)
    batches = list(order(images, batch, seed, 0, steps))
    assert {len(index) for index in batches} == {batch}
    seen = np.concatenate(batches)[: epochs * images].reshape(epochs, images)
    assert (np.sort(seen, axis=1) == np.arange(images)).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 12))
def test_the_order_is_the_same_after_a_resume(images: int, batch: int, cut: int) -> None:
    whole = list(order(images, batch, 1, 0, 12))
    resumed = [*order(images, batch, 1, 0, cut), *order(images, batch, 1, cut, 12)]
    assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_a_seed_has_its_own_order_and_an_epoch_too() -> None:
    first, second = order(50, 50, 0, 0, 2)
    (other,) = order(50, 50, 1, 0, 1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


# --- augmentation ----------------------------------------------------------------------------------------------------


def test_none_is_none() -> None:
    batch = torch.rand(2, 3, 16, 16)
    assert augment(batch, "none", 0, 0) is batch


def test_light_moves_and_mirrors_each_image_for_itself() -> None:
    """Each is one of the 2 x 5 x 5 that there are: mirrored or not, moved by up to 2 of 16 pixels, edges repeated."""
    batch = torch.rand(8, 3, 16, 16)
    padded = torch.nn.functional.pad(batch, (2, 2, 2, 2), mode="replicate")
    found = augment(batch, "light", 0, 0)
    ways = []
    for image, wide in zip(found, padded, strict=True):
        there = [wide[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        matches = [i for i, one in enumerate([*there, *(t.flip(-1) for t in there)]) if torch.equal(one, image)]
        assert len(matches) == 1
        ways += matches
    assert len(set(ways)) > 4


def test_light_is_drawn_from_seed_and_step() -> None:
    batch = torch.rand(8, 3, 16, 16)
    same = augment(batch, "light", 3, 5)
    torch.manual_seed(99)
    assert torch.equal(augment(batch, "light", 3, 5), same)
    assert not torch.equal(augment(batch, "light", 3, 6), same)
    assert not torch.equal(augment(batch, "light", 4, 5), same)
