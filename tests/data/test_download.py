"""Downloads from a server that stops, sends wrong bytes or supports no ranges; harmful archives."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from peftbench.cli.data import fetch_data
from peftbench.core import catalogue, catalogue_files
from peftbench.data import download
from peftbench.data.download import RemoteFile
from peftbench.errors import DataError, RequestError
from peftbench.storage import archives
from tests.studies import call

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes


@dataclass
class Server:
    """What it sends, and how badly."""

    content: bytes = CONTENT
    ranges: bool = True
    stops: list[int] = field(default_factory=list)  # of each request: bytes after which the line drops
    status: int = 200
    asked: list[str | None] = field(default_factory=list)  # the ranges
    port: int = 0

    def url(self, name: str = "x.bin") -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            server.asked.append(asked)
            start = int(asked[6:-1]) if asked and server.ranges else 0
            if server.status != 200 or start >= len(server.content):
                self.send_error(server.status if server.status != 200 else 416)
                return
            body = server.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: server.stops.pop(0)] if server.stops else body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's own names
            """Quiet."""

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "BLOCK", 10_000)
    sends = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(sends)) as listening:
        sends.port = listening.server_port
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield sends
        listening.shutdown()
        thread.join()


def digest(content: bytes = CONTENT, kind: str = "sha256") -> str:
    return f"{kind}:{hashlib.new(kind, content).hexdigest()}"


def file(server: Server, folder: Path, name: str = "x.bin") -> RemoteFile:
    return RemoteFile(server.url(name), folder / "set" / name, digest(server.content), len(server.content))


# --- downloads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_file_arrives_whole_with_its_progress_reported(kind: str, server: Server, tmp_path: Path) -> None:
    given: list[tuple[str, int, int]] = []
    wanted = replace(file(server, tmp_path), checksum=digest(kind=kind))
    there = download.fetch(wanted, lambda *shown: given.append(shown))
    assert there.read_bytes() == CONTENT
    assert given[0][0] == "x.bin"
    assert given[-1][1:] == (len(CONTENT), len(CONTENT))
    assert [entry.name for entry in there.parent.iterdir()] == ["x.bin"]


def test_what_is_here_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    download.fetch(file(server, tmp_path))
    download.fetch(file(server, tmp_path))
    assert server.asked == [None]


def test_a_line_that_drops_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.stops = [200_000, 100_000]
    assert download.fetch(file(server, tmp_path)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=200000-", "bytes=300000-"]


def test_a_download_goes_on_in_the_next_command(server: Server, tmp_path: Path) -> None:
    server.stops = [200_000, *[0] * download.ATTEMPTS]
    with pytest.raises(DataError, match=r"failed: the response ended early\. .* resume at byte 200,000"):
        download.fetch(file(server, tmp_path))
    assert not (tmp_path / "set/x.bin").exists()
    server.asked.clear()
    assert download.fetch(file(server, tmp_path)).read_bytes() == CONTENT
    assert server.asked == ["bytes=200000-"]


def test_a_download_from_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.stops = False, [200_000]
    assert download.fetch(file(server, tmp_path)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=200000-"]


def test_what_was_here_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "set/.x.bin.part"
    part.parent.mkdir()
    part.write_bytes(b"another" * 1000)
    assert download.fetch(file(server, tmp_path)).read_bytes() == CONTENT
    assert server.asked == ["bytes=7000-", None]


def test_more_than_the_whole_file_here_is_thrown_away(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "set/.x.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT + b"more")
    assert download.fetch(file(server, tmp_path)).read_bytes() == CONTENT


def test_a_tampered_file_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    wanted = file(server, tmp_path)
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(DataError, match=r"has sha256 .* instead of the published .*Run the command again"):
        download.fetch(wanted)
    assert not wanted.target.exists()
    server.content = CONTENT
    assert download.fetch(wanted).read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused_before_it_is_read(server: Server, tmp_path: Path) -> None:
    wanted = replace(file(server, tmp_path), size=99)
    with pytest.raises(DataError, match="512,000 bytes instead of the published 99"):
        download.fetch(wanted)
    assert list((tmp_path / "set").iterdir()) == []


def test_a_file_of_the_users_is_never_removed(server: Server, tmp_path: Path) -> None:
    wanted = file(server, tmp_path)
    wanted.target.parent.mkdir()
    wanted.target.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"4 bytes instead of 512,000\. Move it away"):
        download.fetch(wanted)
    assert wanted.target.read_bytes() == b"mine"


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, download.ATTEMPTS)])
def test_a_refusal_is_reported_and_only_a_temporary_one_is_retried(
    status: int, requests: int, server: Server, tmp_path: Path
) -> None:
    server.status = status
    with pytest.raises(DataError, match=str(status)):
        download.fetch(file(server, tmp_path))
    assert len(server.asked) == requests


def test_a_server_that_does_not_answer_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with pytest.raises(DataError, match=r"failed: .*refused"):
        download.fetch(RemoteFile("http://127.0.0.1:1/x.bin", tmp_path / "set/x.bin"))


def test_only_web_addresses_are_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(DataError, match="not an http or https address"):
        download.fetch(RemoteFile(f"file://{tmp_path}/secret", tmp_path / "set/x.bin"))


def test_two_processes_do_not_write_one_file(server: Server, tmp_path: Path) -> None:
    wanted = file(server, tmp_path)
    wanted.target.parent.mkdir()
    with (
        FileLock(wanted.target.with_name(".x.bin.part.lock")),
        pytest.raises(DataError, match="Another process is downloading"),
    ):
        download.fetch(wanted)


# --- archives --------------------------------------------------------------------------------------------------------


def zipped(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def tarred(*members: tarfile.TarInfo, content: bytes = b"picture") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("name", "content"), [("x.zip", zipped(**{"a/1.png": b"picture"})), ("x.tar.gz", tarred(entry("a/1.png")))]
)
@pytest.mark.parametrize("keep", [False, True])
def test_archives_are_unpacked(name: str, content: bytes, keep: bool, server: Server, tmp_path: Path) -> None:  # noqa: FBT001
    server.content = content
    wanted = file(server, tmp_path, name)
    folder = download.fetch(wanted, keep=keep)
    assert (folder / "a/1.png").read_bytes() == b"picture"
    assert wanted.target.exists() == keep
    assert download.fetch(wanted) == folder
    assert len(server.asked) == 1


EVIL = {
    "a way out.zip": zipped(**{"../../out.png": b"x"}),
    "a root.zip": zipped(**{"/out.png": b"x"}),
    "a drive.zip": zipped(**{"c:\\out.png": b"x"}),
    "a way out.tar": tarred(entry("a/../../out.png")),
    "a link.tar": tarred(entry("a", tarfile.SYMTYPE, "/etc"), entry("a/out.png")),
    "a hard link.tar": tarred(entry("a", tarfile.LNKTYPE, "../../out.png")),
    "a device.tar": tarred(entry("a", tarfile.CHRTYPE)),
    "a bomb.zip": zipped(bomb=bytes(1_000_000)),
    "damage.zip": zipped(a=b"picture")[:-30],
}


@pytest.mark.parametrize("name", EVIL)
def test_archives_that_do_harm_are_refused_and_leave_nothing(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SLACK", 1000)
    server.content = EVIL[name]
    wanted = file(server, tmp_path, name.replace(" ", "_"))
    with pytest.raises(DataError, match=r"leaves its folder|link or a device|times its size|damaged"):
        download.fetch(wanted)
    assert [path.name for path in tmp_path.rglob("*") if path != wanted.target] == ["set"]


# --- files of the catalogue ------------------------------------------------------------------------------------------


def test_a_set_of_a_collection_is_one_file_at_a_size(tmp_path: Path) -> None:
    (small,), (large,) = (download.remote_files(f"medmnist:octmnist{size}", tmp_path) for size in ("", "[size=224]"))
    assert small.target == tmp_path / "medmnist/octmnist.npz"
    assert large.target == tmp_path / "medmnist/octmnist_224.npz"
    assert large.url == "https://zenodo.org/records/10519652/files/octmnist_224.npz?download=1"
    assert large.checksum == "md5:abc493b6d529d5de7569faaef2773ba3"


def published() -> dict[str, dict[str, str]]:
    """Return the facts in the package medmnist, read without importing all of it."""
    package = find_spec("medmnist")
    if package is None or package.origin is None:
        pytest.skip("medmnist is not installed")
    spec = spec_from_file_location("medmnist_info", Path(package.origin).with_name("info.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, dict[str, str]] = module.INFO
    return found


def test_every_file_of_medmnist_is_the_packages_own(tmp_path: Path) -> None:
    info = published()
    for name in catalogue.dataset_entry("medmnist").members:
        for size, end in ((28, ""), (64, "_64"), (128, "_128"), (224, "_224")):
            (found,) = download.remote_files(f"medmnist:{name}[size={size}]", tmp_path)
            assert found.url == info[name][f"url{end}"]
            assert found.checksum == f"md5:{info[name][f'MD5{end}']}"


@pytest.mark.parametrize("name", ["medmnist", "medmnist:nothing", "medmnist:octmnist[size=65]"])
def test_a_set_that_there_is_not_is_refused_with_those_there_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="octmnist, "):
        download.remote_files(name, tmp_path)


def test_every_download_of_the_catalogue_is_a_secure_web_address(tmp_path: Path) -> None:
    names = [name for name in catalogue_files.dataset_names() if not catalogue.dataset_entry(name).members]
    files = [file for name in names for file in download.remote_files(name, tmp_path)]
    assert {file.target.parent.name for file in files} == {"chest_xray", "oct", "limuc"}
    assert all(file.url.startswith("https://") for file in files)


def test_what_cannot_be_downloaded_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(["data", "fetch", "chaoyang", "--data", str(tmp_path)], monkeypatch) == 1
    shown = capsys.readouterr().out
    assert "Non-commercial research only" in shown
    assert "https://bupt-ai-cz.github.io/HSA-NRL/" in shown
    assert f"Put the files into {tmp_path / 'chaoyang'}" in shown


def test_terms_are_accepted_first(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["data", "fetch", "medmnist:dermamnist", "--data", str(tmp_path)]
    server.content = zipped(train_images=b"picture")
    monkeypatch.setattr(download, "remote_files", lambda *_: [file(server, tmp_path, "x.zip")])
    assert call(command, monkeypatch) == 2
    assert "DermaMNIST: CC BY-NC 4.0. Run the same command with --accept-licence" in capsys.readouterr().err
    assert server.asked == []
    assert call([*command, "--accept-licence"], monkeypatch) == 0
    assert "x (checksum as published)" in capsys.readouterr().out
    assert (tmp_path / "set/x/train_images").exists()


def test_what_was_unpacked_before_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chest_xray/ChestXRay2017").mkdir(parents=True)
    assert fetch_data(["chest_xray"], tmp_path, accept=False, keep=False) == 0
    assert "ChestXRay2017 exists; move it away to download it again." in capsys.readouterr().out


def test_a_description_without_a_download_states_where_its_images_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/clinic.toml").write_text('title = "Clinic"\npath = "scans"\n')
    assert download.remote_files("clinic", tmp_path) == []
    (shown,) = download.manual_steps("clinic", tmp_path)
    assert shown.endswith("datasets/clinic.toml: put its images at scans.")
