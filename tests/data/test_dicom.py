"""DICOM files as pixels: windows, LUTs, padding, polarity, palettes, and every image among pydicom's own test files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import data
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
)

from peftbench.data import dicom, image_io
from peftbench.data.image_io import open_picture
from peftbench.data.raster import UndecodableError
from peftbench.errors import DataError
from tests.images import shown

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


def test_colored_dicom(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(open_picture(write_dicom(tmp_path / "x.dcm", rgb))), rgb)


def test_dicom_is_known_by_its_content_where_no_suffix_tells(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "IM000001", RAMP)
    assert dicom.is_dicom(file)
    assert shown(file).max() == 255


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no dicom", "^not an image: text$"),
        ("no pixels", r"^holds no image \(modality unknown\)$"),
        ("several frames", "^2 frames; export the one to classify$"),
    ],
)
def test_dicom_without_one_picture_is_refused_with_the_reason(case: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "x.dcm"
    if case == "no dicom":
        file.write_bytes(b"nothing of the kind")
    else:
        write_dicom(file, RAMP, **({"NumberOfFrames": 2, "Rows": 32} if case == "several frames" else {}))
    if case == "no pixels":
        scan = pydicom.dcmread(file)
        del scan.PixelData
        scan.save_as(file)
    with pytest.raises(UndecodableError, match=reason):
        open_picture(file)


def test_dicom_without_the_extra_states_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path / "x.dcm", RAMP)
    monkeypatch.setattr(dicom, "find_spec", lambda _: None)
    for ask in (lambda: open_picture(tmp_path / "x.dcm"), lambda: image_io.notes([tmp_path / "x.dcm"])):
        with pytest.raises(DataError, match=r"needs pydicom: pip install 'peftbench\[dicom\]'"):
            ask()


@pytest.mark.parametrize("syntax", [JPEGExtended12Bit, JPEGLSLossless])
def test_a_compression_of_another_extra_names_that_extra(syntax: UID, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {JPEGExtended12Bit: "JPGExtended.dcm", JPEGLSLossless: "MR_small_jpeg_ls_lossless.dcm"}[syntax]
    monkeypatch.setattr(get_decoder(syntax), "_available", {})
    with pytest.raises(UndecodableError, match=r"^JPEG.* needs a decoder: pip install 'peftbench\[dicom-jpeg\]'$"):
        open_picture(next(file for file in SHIPPED if file.name == name))


# --- patients ---------------------------------------------------------------------------------------------------------


def test_patients_are_read_from_dicom_files_that_tell_them_apart(tmp_path: Path) -> None:
    files = [write_dicom(tmp_path / f"{i}.dcm", RAMP[:8, :8], PatientID=f"P{i // 2} ") for i in range(4)]
    assert [dicom.patient(file) for file in files] == ["P0", "P0", "P1", "P1"]
    assert dicom.states_patients(files)
    assert not dicom.states_patients(files[:2])  # as where all were given one name


def test_what_is_no_dicom_states_no_patient(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_text("x")
    assert dicom.patient(tmp_path / "x.dcm") == ""
    assert not dicom.states_patients([tmp_path / "x.dcm", tmp_path / "y.png"])


# --- against pydicom -------------------------------------------------------------------------------------------------

SHIPPED = sorted(Path(data.__file__).with_name("test_files").rglob("*.dcm"))  # more would be downloaded
SYNTAXES: dict[Any, UID] = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
FRAMES = r"^\d+ frames; export the one to classify$"
REFUSED = {  # of pydicom's test files that hold pixels
    "JPEG-lossy.dcm": r"^damaged: no decoder reads its JPEG Extended \(Process 2 and 4\)$",
    "JPEG2000-embedded-sequence-delimiter.dcm": r"^damaged: no decoder reads its JPEG 2000 Image Compression",
    "MR_truncated.dcm": "^damaged: The number of bytes of pixel data is less than expected",
    "badVR.dcm": "invalid literal",
}


def expected(header: Any) -> NDArray[np.uint8]:
    """What pydicom's own functions make of a file, brought to eight bits over the range that the standard gives."""
    values = pixel_array(header)
    if values.ndim == 3:
        return np.asarray(values >> max(0, header.BitsStored - 8)).astype(np.uint8)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return (apply_color_lut(values, header) >> 8).astype(np.uint8)
    rescaled = apply_modality_lut(values, header)
    if "WindowCenter" in header or "VOILUTSequence" in header:
        seen = apply_voi_lut(rescaled, header).astype(np.float64)
        low, high = (float(end) for end in apply_modality_lut(np.array(ends(header)), header))
        share = ((seen - low) / (high - low)).clip(0, 1)
    else:
        low, high = np.percentile(rescaled, (0.5, 99.5))
        share = ((rescaled - low) / ((high - low) or 1)).clip(0, 1)
    share = 1 - share if header.PhotometricInterpretation == "MONOCHROME1" else share
    return np.stack([np.round(share * 255)] * 3, axis=-1).astype(np.uint8)


def ends(header: Any) -> tuple[int, int]:
    """The least and the largest stored value that the bits allow."""
    low = -(1 << (header.BitsStored - 1)) if header.PixelRepresentation else 0
    return low, low + (1 << header.BitsStored) - 1


@pytest.mark.filterwarnings("ignore")  # of pydicom about faults that its test files are made to have
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_pydicoms_own_files_are_shown_as_pydicom_shows_them_or_refused_with_a_reason(file: Path) -> None:
    header = pydicom.dcmread(file, force=True)
    several = str(header.get("NumberOfFrames", 1)) not in {"1", "1A"}
    reason = FRAMES if several else REFUSED.get(file.name, "" if "Rows" in header else "^(holds|not) (no|an) image")
    if reason:
        with pytest.raises(UndecodableError, match=reason):
            open_picture(file)
        return
    if "TransferSyntaxUID" not in header.file_meta:
        header.file_meta.TransferSyntaxUID = SYNTAXES[header.original_encoding]
    assert np.abs(np.asarray(open_picture(file)).astype(int) - expected(header)).max() <= 1  # of rounding
