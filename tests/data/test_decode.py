"""From image files of every kind to pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from peftbench.core.contract import Part
from peftbench.data.decode import decode
from tests.images import SMALL, Pixels, part, photo

WRITES_WHAT_IT_READS = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="before 13 Pillow does not read its own TIFF files of YCbCr"
)


def opened(file: Path) -> Pixels:
    """As decoded (3, 8, 8); the file must open."""
    found, bad = decode(part([file]), SMALL)
    assert bad == {}
    first: Pixels = found[0]
    return first


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", pytest.param("YCbCr", marks=WRITES_WHAT_IT_READS)])
def test_color_images_of_every_mode(mode: str, tmp_path: Path) -> None:
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
def test_sixteen_bits_are_windowed(suffix: str, tmp_path: Path) -> None:
    """Pillow alone would make everything above 255 white."""
    deep = np.random.default_rng(0).integers(2**16, size=(8, 8), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"x{suffix}")
    found, wanted = opened(tmp_path / f"x{suffix}")[0], deep / 65535 * 255
    assert np.abs(found - wanted).max() < 12  # of a window from the 0.5th to the 99.5th percentile


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
