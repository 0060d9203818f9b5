"""Nothing that is written to be published holds the name of a patient or the path to the images."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from tests import studies

PLANTED = "Zyxwora"  # a name that nothing else has
SHORT = ("--recipe", "quick", "--steps", "4", "--batch", "4", "--evaluations", "2", "--backbone", "mini", "--jobs", "1")


def draw(root: Path) -> Path:
    """Write DICOM files and a table of them: patients' names in files, groups, tags, a class and the path."""
    folder, draw = root / f"ward of {PLANTED}", np.random.default_rng(0)
    folder.mkdir(parents=True)
    lines = ["image,label,split,group"]
    for number in range(24):
        kind = number % 2
        name, part = f"{PLANTED}_{number}.dcm", ("train", "train", "val", "test")[number // 2 % 4]
        dicom(folder / name, draw.integers(0, 128, (64, 64)) + 100 * kind, f"{PLANTED}^{number}")
        lines.append(f"{name},{('healthy', f'as {PLANTED}')[kind]},{part},{PLANTED} {number // 4}")
    (folder / "scans.csv").write_text("\n".join(lines))
    return folder / "scans.csv"


def dicom(file: Path, pixels: np.ndarray, patient: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    scan.SOPClassUID, scan.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    scan.PatientName, scan.PatientID, scan.InstitutionName = patient, patient, f"Hospital {PLANTED}"
    scan.Rows, scan.Columns = pixels.shape
    scan.SamplesPerPixel, scan.PhotometricInterpretation, scan.PixelRepresentation = 1, "MONOCHROME2", 0
    scan.BitsAllocated, scan.BitsStored, scan.HighBit = 8, 8, 7
    scan.PixelData = pixels.astype(np.uint8).tobytes()
    pydicom.dcmwrite(file, scan, enforce_file_format=True)


def contents(file: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, and of what is compressed in it."""
    yield (whole := file.read_bytes())
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", whole, re.DOTALL) if file.suffix == ".pdf" else ():
        with suppress(zlib.error):  # not compressed: part of the whole
            yield zlib.decompressobj().decompress(stream)
    if file.suffix == ".png":
        with Image.open(file) as image:
            yield repr(image.info).encode()


def test_no_published_file_holds_a_patient_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, out = draw(tmp_path), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    asked = ("--methods", "shpeft,full", "--datasets", f"table:{table}", "--group-column", "group")
    assert studies.call(["run", *asked, *SHORT], monkeypatch) == 0
    full = next(name for name, record in studies.records(tmp_path / "runs").items() if record.method.name == "full")
    for words in (
        ["report", "runs", "--out", "out/report", "--anonymous"],
        ["compare", "runs", "--csv", "out/pairs.csv"],
        ["analyze", "positions", "runs", "--out", "out/analysis", "--anonymous"],
    ):
        out.mkdir(exist_ok=True)
        assert studies.call(words, monkeypatch) == 0, words
    files = [file for file in out.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".csv", ".html", ".md", ".tex", ".pdf", ".png", ".svg"}
    found = {str(file) for file in files if any(PLANTED.encode() in content for content in contents(file))}
    assert found == set()
    assert studies.call(["merge", full, "-o", "merged/model.safetensors"], monkeypatch) == 0
    assert studies.call(["merge", full, "--to", "huggingface", "-o", "merged/hub"], monkeypatch) == 0
    label = f"as {PLANTED}".encode()  # the class is part of the model; nothing else is
    for file in (file for file in (tmp_path / "merged").rglob("*") if file.is_file()):
        assert not any(PLANTED.encode() in content.replace(label, b"") for content in contents(file))
