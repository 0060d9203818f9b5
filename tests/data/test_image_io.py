"""Images of more than eight bits, of odd layouts and orientations; reasons of those that cannot be decoded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from peftbench.data import image_io
from peftbench.data.image_io import broken_sentence, open_picture
from peftbench.data.raster import UndecodableError
from tests.data.test_dicom import RAMP, write_dicom
from tests.images import shown

# --- sixteen bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_twelve_bits_in_sixteen_do_not_come_out_dark(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"x{suffix}")
    grey = shown(tmp_path / f"x{suffix}")
    assert grey.min() == 0
    assert grey.max() == 255
    assert abs(grey.mean() - 127.5) < 1


def test_a_few_extreme_values_do_not_set_the_window(tmp_path: Path) -> None:
    spoiled = RAMP.copy()
    spoiled[0, 0] = 65535
    Image.fromarray(spoiled).save(tmp_path / "x.png")
    assert abs(shown(tmp_path / "x.png").mean() - 127.5) < 1


def test_a_small_spot_on_an_even_ground_is_seen(tmp_path: Path) -> None:
    spot = np.full((64, 64), 300, np.uint16)
    spot[5, 5] = 400
    Image.fromarray(spot).save(tmp_path / "x.png")
    assert shown(tmp_path / "x.png")[5, 5] == 255
    assert shown(tmp_path / "x.png")[6, 6] == 0


def test_an_even_image_opens(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "x.png")
    assert (shown(tmp_path / "x.png") == 0).all()


def test_floating_point_values_with_gaps_open(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert shown(tmp_path / "x.tif").max() == 255


def test_an_image_without_a_finite_value_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UndecodableError, match="no value is a finite number"):
        shown(tmp_path / "x.tif")


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    grey = np.arange(100, 164, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "x.png")
    assert np.array_equal(shown(tmp_path / "x.png"), grey)


def test_a_stack_of_pages_is_refused_and_a_preview_passed_over(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 8), grey) for grey in (10, 200)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UndecodableError, match=r"^several pages; export the one to classify$"):
        open_picture(tmp_path / "stack.tif")
    pages[0].save(tmp_path / "preview.tif", save_all=True, append_images=[pages[1].resize((4, 4))])
    assert (shown(tmp_path / "preview.tif") == 10).all()


@pytest.mark.parametrize("sides", [(4, 8), (8, 4, 8)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint32])
def test_a_preview_does_not_stand_for_the_pages_after_it(sides: tuple[int, ...], kind: Any, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as out:
        for side in sides:
            out.write(np.eye(side, dtype=kind), photometric="minisblack")
    with pytest.raises(UndecodableError, match=r"^several pages; export the one to classify$"):
        open_picture(tmp_path / "x.tif")


# --- notes -----------------------------------------------------------------------------------------------------------


def test_notes_say_how_deep_images_are_shown(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "deep.png")
    Image.fromarray((RAMP >> 4).astype(np.uint8)).save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_text("x")
    write_dicom(tmp_path / "x.dcm", RAMP)
    assert image_io.notes(sorted(tmp_path.iterdir())) == (
        "DICOM images, shown through their first VOI LUT or window, else from percentile 0.5 to 99.5 of each image: 1.",
        "Images of more than 8 bits per channel, shown from percentile 0.5 to 99.5 of each image: 1.",
    )
    assert image_io.notes([tmp_path / "plain.png"]) == ()


def test_notes_count_turned_and_inverted_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "b.webp", "c.png"):
        Image.new("RGB", (8, 4)).save(tmp_path / name, exif=exif)
    Image.fromarray(RAMP).save(tmp_path / "d.tif", tiffinfo={262: 0})
    found = image_io.notes(sorted(tmp_path.iterdir()))
    assert found[1:] == (
        "Images turned upright as their metadata state: 3.",
        "Images of more than 8 bits whose lowest value is white, inverted: 1.",
    )


@pytest.mark.parametrize("values", [RAMP.astype(np.int32), np.stack([RAMP, RAMP], -1)], ids=["signed", "with alpha"])
def test_notes_count_what_only_tifffile_reads(values: NDArray[Any], tmp_path: Path) -> None:
    more: dict[str, Any] = {"extrasamples": [2]} if values.ndim > 2 else {}
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="miniswhite", extratags=[(274, 3, 1, 3, True)], **more)
    assert shown(tmp_path / "x.tif")[0, 0] < shown(tmp_path / "x.tif")[-1, -1]
    assert image_io.notes([tmp_path / "x.tif"])[1:] == (
        "Images turned upright as their metadata state: 1.",
        "Images of more than 8 bits whose lowest value is white, inverted: 1.",
    )


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_of_an_animation_the_first_frame_is_shown_and_noted(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), grey) for grey in ((10, 10, 10), (200, 200, 200))]
    how: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], **how)
    frames[1].save(tmp_path / f"y{suffix}", **how)
    assert (shown(tmp_path / f"x{suffix}") == 10).all()
    assert image_io.notes(sorted(tmp_path.iterdir())) == ("Images of several frames, of which the first is used: 1.",)


def test_a_postscript_program_is_not_run(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    with pytest.raises(UndecodableError, match=r"^a PostScript program; export it as PNG$"):
        open_picture((tmp_path / "x.eps").rename(tmp_path / "x.png"))


# --- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.png", b"", "empty file"),
        ("x.png", b"name,label\n", "not an image: text"),
        ("x.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "not an image: a Git LFS pointer; run"),
        ("x.jpg", b"<!DOCTYPE html><html>", "not an image: an HTML page"),
        ("x.tif", bytes(range(256)), "not an image: unknown content"),
        ("x.jpg", b"\0\0\0\x18ftypheic" + bytes(90), "not an image: a HEIC photo; export it as PNG"),
    ],
)
def test_a_file_that_is_no_image_states_what_it_is(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UndecodableError, match=f"^{reason}"):
        open_picture(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_a_truncated_image_states_where_it_ends(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"x{suffix}")
    content = (tmp_path / f"x{suffix}").read_bytes()
    (tmp_path / f"x{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(UndecodableError, match=f"^truncated at byte {len(content) // 2:,}$"):
        open_picture(tmp_path / f"x{suffix}")


def test_the_pixel_limit_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (1500, 1000)).save(tmp_path / "x.png")
    monkeypatch.setenv("PEFTBENCH_MAX_MEGAPIXELS", "1.2")
    with pytest.raises(UndecodableError, match=r"^1\.5 megapixels exceed the limit of 1\.2, see PEFTBENCH_MAX_"):
        open_picture(tmp_path / "x.png")
    monkeypatch.setenv("PEFTBENCH_MAX_MEGAPIXELS", "0.02")
    with pytest.raises(UndecodableError, match=r"^1\.5 megapixels exceed the limit of 0\.02, see"):
        open_picture(tmp_path / "x.png")
    monkeypatch.setenv("PEFTBENCH_MAX_MEGAPIXELS", "2")
    assert open_picture(tmp_path / "x.png").size == (1500, 1000)


def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):
        with pytest.raises(UndecodableError, match=r"^not a regular file$"):
            open_picture(tmp_path / name)
        assert image_io.notes([tmp_path / name]) == ()


def test_reasons_are_grouped_where_there_are_many() -> None:
    assert broken_sentence({"a.png": "empty file"}) == "Cannot decode 1 image: a.png (empty file). Fix or remove it."
    many = {f"{i}.png": f"truncated at byte {i}" for i in range(9)} | {"z.png": "empty file"}
    assert broken_sentence(many, ", or pass --skip-broken") == (
        "Cannot decode 10 images: 0.png, 1.png, 2.png, 3.png, 4.png, ... (truncated at byte 0, for the first); "
        "z.png (empty file). Fix or remove them, or pass --skip-broken."
    )
