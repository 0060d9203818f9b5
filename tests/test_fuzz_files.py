"""Archives and images of any bytes are used, or refused in a sentence, and nothing is written elsewhere."""

from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from peftbench.data import dicom as dicom_
from peftbench.data import image_io
from peftbench.data.decode import decode
from peftbench.errors import DataError
from peftbench.storage.archives import unpack
from tests.fuzzing import damage, drawn, fresh, or_refused
from tests.images import SMALL, part, photo


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# --- archives --------------------------------------------------------------------------------------------------------

NAMES = ("a.txt", "b/a.txt", "b", "../out", "/out", "C:/out", "b/../../out", "", ".", "b/", "a\0b", "\udcff", "x" * 300)
KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"V")


def tarred(members: Sequence[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for name, kind in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, "../../out", 3 if kind == tarfile.REGTYPE else 0
            packed.addfile(entry, io.BytesIO(b"abc"))
    return out.getvalue()


def zipped(members: Sequence[tuple[str, int]]) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as packed:
        warnings.simplefilter("ignore")  # of names that stand there twice, as is meant
        for name, mode in members:
            entry = zipfile.ZipInfo(name.replace("\udcff", "\xff"))
            entry.external_attr = mode << 16
            packed.writestr(entry, "../../out", zipfile.ZIP_DEFLATED)
    return out.getvalue()


TARS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(KINDS)), max_size=4).map(tarred)
ZIPS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from((0o100644, 0o120777))), max_size=4).map(zipped)
SOUND_TAR = tarred([("a.txt", tarfile.REGTYPE), ("b/a.txt", tarfile.REGTYPE)])
SOUND_ZIP = zipped([("a.txt", 0o100644), ("b/a.txt", 0o100644)])


def assert_stays_within(folder: Path, name: str, content: bytes) -> None:
    archive = folder / "below" / name
    archive.parent.mkdir()
    archive.write_bytes(content)
    unpacked = set()
    with or_refused(DataError):
        unpacked.add(unpack(archive))
    assert unpacked <= {archive.parent / "set"}
    assert set(archive.parent.iterdir()) == {archive, *unpacked}
    assert list(folder.iterdir()) == [archive.parent]
    assert all(not path.is_symlink() and (path.is_file() or path.is_dir()) for path in folder.rglob("*"))


@drawn
@given(TARS | damage(SOUND_TAR))
def test_a_tar_unpacks_within_its_folder_or_not_at_all(home: Path, content: bytes) -> None:
    assert_stays_within(fresh(home), "set.tar.gz", content)


@drawn
@given(ZIPS | damage(SOUND_ZIP))
def test_a_zip_unpacks_within_its_folder_or_not_at_all(home: Path, content: bytes) -> None:
    assert_stays_within(fresh(home), "set.zip", content)


def locked(content: bytes) -> bytes:
    """Return a zip archive whose member is marked as encrypted."""
    changed = bytearray(content)
    changed[6] |= 1
    changed[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def test_an_encrypted_zip_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(locked(zipped([("a.txt", 0o100644)])))
    with pytest.raises(DataError, match=r"cannot be unpacked by peftbench \(.*password required.*\)"):
        unpack(tmp_path / "set.zip")


@pytest.mark.parametrize("time", ["inf", "1e30"])
def test_a_tar_of_a_time_that_no_clock_shows_is_refused_in_a_sentence(time: str, tmp_path: Path) -> None:
    entry = tarfile.TarInfo("a.txt")
    entry.pax_headers = {"mtime": time}
    with tarfile.open(tmp_path / "set.tar", "w") as packed:
        packed.addfile(entry)
    with pytest.raises(DataError, match=r"is damaged \(.*\); download it again\.$"):
        unpack(tmp_path / "set.tar")


def test_a_bomb_of_empty_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftbench.storage.archives.SLACK", 0)
    (tmp_path / "set.tar.gz").write_bytes(tarred([(f"{i}", tarfile.DIRTYPE) for i in range(1000)]))
    monkeypatch.setattr("peftbench.storage.archives.BOMB", 20)
    with pytest.raises(DataError, match="would unpack to more than 20 times its size"):
        unpack(tmp_path / "set.tar.gz")


# --- images ----------------------------------------------------------------------------------------------------------


def dicom() -> bytes:
    """A grey image of 8 x 8."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    image.PatientID, image.PhotometricInterpretation = "one", "MONOCHROME2"
    image.Rows = image.Columns = image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.SamplesPerPixel, image.PixelRepresentation = 7, 1, 0
    image.PixelData = photo()[..., 0].tobytes()
    out = io.BytesIO()
    image.save_as(out, enforce_file_format=True)
    return out.getvalue()


def encoded(kind: str) -> Callable[[], bytes]:
    def encode() -> bytes:
        out = io.BytesIO()
        Image.fromarray(photo()).save(out, kind)
        return out.getvalue()

    return encode


SOUND = {f".{k.lower()}": encoded(k) for k in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")} | {".dcm": dicom}
FILES = st.sampled_from(sorted(SOUND)).flatmap(
    lambda kind: st.tuples(st.just(kind), damage(SOUND[kind]()) | st.binary(max_size=200))
)


@pytest.mark.filterwarnings("ignore")  # decoders wonder aloud
@drawn
@given(FILES)
def test_any_bytes_as_an_image_open_or_count_as_broken(home: Path, drawn_file: tuple[str, bytes]) -> None:
    file = fresh(home) / f"image{drawn_file[0]}"
    file.write_bytes(drawn_file[1])
    pixels, bad = decode(part([file]), SMALL)
    assert pixels.shape == (1, 3, 8, 8)
    assert not bad or not pixels.any()
    image_io.notes([file])
    assert dicom_.patient(file) == "" or file.suffix == ".dcm"


@pytest.mark.parametrize("kind", SOUND)
def test_sound_images_open(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"image{kind}").write_bytes(SOUND[kind]())
    assert decode(part([tmp_path / f"image{kind}"]), SMALL)[1] == {}


@pytest.mark.parametrize("size", [(60_000, 60_000), (1, 100_000), (100_000, 1)])
def test_a_picture_that_would_fill_the_memory_counts_as_broken(size: tuple[int, int], tmp_path: Path) -> None:
    content = bytearray(encoded("BMP")())
    content[18:26] = size[0].to_bytes(4, "little") + size[1].to_bytes(4, "little")
    (tmp_path / "bomb.bmp").write_bytes(content + bytes(0 if min(size) > 1 else 500_000))
    assert decode(part([tmp_path / "bomb.bmp"]), SMALL)[1].keys() == {0}
    assert image_io.notes([tmp_path / "bomb.bmp"]) == ()
