"""How files of more than eight bits a channel are shown. DICOM files are written here by pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from peftbench.data import image_io
from peftbench.data.image_io import open_picture
from peftbench.errors import DataError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # twelve bits


def write_dicom(file: Path, pixels: NDArray[Any], **tags: Any) -> Path:
    scan = Dataset()
    scan.file_meta = FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.file_meta.MediaStorageSOPClassUID = scan.SOPClassUID = SecondaryCaptureImageStorage
    scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID = UID("1.2.3")
    scan.Rows, scan.Columns = pixels.shape[:2]
    scan.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    scan.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    scan.BitsAllocated = scan.BitsStored = 8 * pixels.itemsize
    scan.HighBit, scan.PixelRepresentation = scan.BitsStored - 1, int(pixels.dtype.kind == "i")
    scan.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(scan, name, value)
    scan.PixelData = pixels.tobytes()
    pydicom.dcmwrite(file, scan, enforce_file_format=True)
    return file


def shown(file: Path) -> NDArray[np.uint8]:
    """Its first channel, all three being equal."""
    rgb = np.asarray(open_picture(file))
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]


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


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    grey = np.arange(100, 164, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "x.png")
    assert np.array_equal(shown(tmp_path / "x.png"), grey)


def test_a_stack_of_pages_is_refused_and_a_preview_passed_over(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 8), grey) for grey in (10, 200)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="holds several pages; export the one to classify"):
        open_picture(tmp_path / "stack.tif")
    pages[0].save(tmp_path / "preview.tif", save_all=True, append_images=[pages[1].resize((4, 4))])
    assert (shown(tmp_path / "preview.tif") == 10).all()


# --- DICOM -----------------------------------------------------------------------------------------------------------


def test_dicom_is_shown_in_its_own_first_window(tmp_path: Path) -> None:
    """Of 100 values around 1000: 950.0 to 1049.0, by PS3.3 C.11.2.1.2."""
    file = write_dicom(tmp_path / "x.dcm", RAMP, WindowCenter=[1000, 40], WindowWidth=[100, 400])
    grey = shown(file).ravel()
    assert grey[950] == 0
    assert grey[1049] == 255
    assert grey[1000] == round(255 * 50 / 99)


def test_a_window_of_width_1_is_a_step(tmp_path: Path) -> None:
    grey = shown(write_dicom(tmp_path / "x.dcm", RAMP, WindowCenter=1000, WindowWidth=1)).ravel()
    assert (grey[999], grey[1000]) == (0, 255)


def test_a_window_counts_rescaled_values(tmp_path: Path) -> None:
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 0, "WindowWidth": 101}
    grey = shown(write_dicom(tmp_path / "x.dcm", RAMP, **tags)).ravel()
    assert grey[512] == round(255 * 50.5 / 100)  # Hounsfield 0
    assert grey[400] == 0
    assert grey[600] == 255


def test_dicom_without_a_window_is_shown_by_percentile(tmp_path: Path) -> None:
    grey = shown(write_dicom(tmp_path / "x.dcm", RAMP))
    assert (grey.min(), grey.max()) == (0, 255)
    assert abs(grey.mean() - 127.5) < 1


def test_padding_outside_of_the_scan_does_not_set_the_window(tmp_path: Path) -> None:
    scan = RAMP.astype(np.int16)
    scan[:8] = -2000
    grey = shown(write_dicom(tmp_path / "x.dcm", scan, PixelPaddingValue=-2000))
    assert (grey[:8] == 0).all()
    assert grey[9].max() < 20  # 512 to 640 of 512 to 4095


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = shown(write_dicom(tmp_path / "a.dcm", RAMP))
    inverted = shown(write_dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted.astype(int), 255 - plain.astype(int))


def test_coloured_dicom(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(open_picture(write_dicom(tmp_path / "x.dcm", rgb))), rgb)


def test_dicom_is_known_by_its_content_where_no_suffix_tells(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "IM000001", RAMP)
    assert image_io.is_dicom(file)
    assert shown(file).max() == 255


@pytest.mark.parametrize("case", ["no dicom", "no pixels", "several frames"])
def test_dicom_that_cannot_be_shown_does_not_open(case: str, tmp_path: Path) -> None:
    file = tmp_path / "x.dcm"
    if case == "no dicom":
        file.write_bytes(b"nothing of the kind")
    else:
        write_dicom(file, RAMP, **({"NumberOfFrames": 2, "Rows": 32} if case == "several frames" else {}))
    if case == "no pixels":
        scan = pydicom.dcmread(file)
        del scan.PixelData
        scan.save_as(file)
    with pytest.raises(ValueError, match=r"x\.dcm"):
        open_picture(file)


def test_dicom_without_the_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_io, "find_spec", lambda _: None)
    for ask in (lambda: open_picture(tmp_path / "x.dcm"), lambda: image_io.notes([tmp_path / "x.dcm"])):
        with pytest.raises(DataError, match=r"needs pydicom: pip install 'peftbench\[dicom\]'"):
            ask()


# --- patients ---------------------------------------------------------------------------------------------------------


def test_patients_are_read_from_dicom_files_that_tell_them_apart(tmp_path: Path) -> None:
    files = [write_dicom(tmp_path / f"{i}.dcm", RAMP[:8, :8], PatientID=f"P{i // 2} ") for i in range(4)]
    assert [image_io.patient(file) for file in files] == ["P0", "P0", "P1", "P1"]
    assert image_io.states_patients(files)
    assert not image_io.states_patients(files[:2])  # as where all were given one name


def test_what_is_no_dicom_states_no_patient(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_text("x")
    assert image_io.patient(tmp_path / "x.dcm") == ""
    assert not image_io.states_patients([tmp_path / "x.dcm", tmp_path / "y.png"])


# --- notes -----------------------------------------------------------------------------------------------------------


def test_notes_say_how_deep_images_are_shown(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "deep.png")
    Image.fromarray((RAMP >> 4).astype(np.uint8)).save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_text("x")
    write_dicom(tmp_path / "x.dcm", RAMP)
    assert image_io.notes(sorted(tmp_path.iterdir())) == (
        "1 DICOM images are shown in their own first window, without one from percentile 0.5 to 99.5 of each image.",
        "1 grey images of more than 8 bits are shown from percentile 0.5 to 99.5 of each image.",
    )
    assert image_io.notes([tmp_path / "plain.png"]) == ()
