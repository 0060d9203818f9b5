"""Weights by name: the protocol of the Hugging Face hub against a server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from peftbench.models.backbone import locate

COMMIT = "a" * 40
REPOSITORY = "someone/some-vit"
PRESET = """
title = "A tiny ViT"
architecture = "vit_tiny_patch16_224"
pooling = "token"
licence = "CC BY 4.0"
{gated}

[options]
depth = 1
patch_size = 8

[input]
size = 32
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]

[weights]
repository = "someone/some-vit"
file = "model.safetensors"
{more}
"""


@dataclass
class Hub:
    """What the server holds and how it behaves."""

    content: bytes = b""
    gated: bool = False
    tampered: bool = False
    cut_after: int = 0  # bytes of the first answer, after which the connection ends
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    tokens: list[str | None] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - one small method after another
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            if not self.path.startswith("/api/"):  # of huggingface_hub itself
                hub.requests.append((self.command, self.path, self.headers.get("Range")))
            hub.tokens.append(self.headers.get("Authorization"))
            known = self.path.split("?")[0] in {
                f"/{REPOSITORY}/resolve/{at}/model.safetensors" for at in ("main", COMMIT)
            }
            if self.path == "/cdn/blob":
                self.send_blob()
            elif known and hub.gated and not self.headers.get("Authorization"):
                self.reply(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."})
            elif known:
                other = self.headers["Host"].replace("127.0.0.1", "localhost")  # as files come from another host
                place = {"Location": f"http://{other}/cdn/blob", "X-Repo-Commit": COMMIT, "ETag": '"x"'}
                self.reply(302, place | {"X-Linked-Etag": f'"{hub.digest}"', "X-Linked-Size": str(len(hub.content))})
            else:
                code = "RevisionNotFound" if f"/{REPOSITORY}/resolve/" in self.path else "RepoNotFound"
                self.reply(404, {"X-Error-Code": code})

        def reply(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": "0"}).items():
                self.send_header(name, value)
            self.end_headers()

        def send_blob(self) -> None:
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            whole = hub.content if not hub.tampered else hub.content[:-1] + bytes([hub.content[-1] ^ 1])
            part = whole[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            self.end_headers()
            if hub.cut_after and not start:
                part = part[: hub.cut_after]
                self.close_connection = True
            if self.command == "GET":
                self.wfile.write(part)

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]  # of this server
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, hub: Hub) -> Path:
    """A working folder with a preset of a tiny network whose weights are on the server."""
    write_preset(tmp_path)
    os.chdir(tmp_path)
    torch.manual_seed(0)
    vit = locate("tiny_hub@random").build(7)
    hub.content = save({name: tensor.contiguous() for name, tensor in vit.state_dict().items()})
    return tmp_path


@pytest.fixture(autouse=True)
def _back() -> Iterator[None]:
    here = Path.cwd()
    yield
    os.chdir(here)


def write_preset(folder: Path, gated: str = "", more: str = "") -> None:
    (folder / "backbones").mkdir(exist_ok=True)
    (folder / "backbones" / "tiny_hub.toml").write_text(PRESET.format(gated=gated, more=more))


def program(home: Path, hub: Hub, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """`peftbench ARGUMENTS` with this server as the hub: exit code, stdout, stderr."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    place = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home / "hf"), "NO_PROXY": "*"}  # type: ignore[attr-defined]  # set there
    command = [sys.executable, "-m", "peftbench", *arguments]
    done = subprocess.run(
        command, cwd=home, env=kept | place | environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_weights_are_fetched_once_checked_and_stated(home: Path, hub: Hub) -> None:
    code, out, err = program(home, hub, "weights", "fetch", "tiny_hub", "--json")
    assert code == 0, err
    found = json.loads(out)["tiny_hub"]
    assert (found["revision"], found["sha256"]) == (COMMIT, hub.digest)
    assert Path(found["path"]).read_bytes() == hub.content
    assert "Downloading the weights of tiny_hub: someone/some-vit on the Hugging Face hub" in err
    assert "licence: CC BY 4.0" in err
    transfers = sum(path == "/cdn/blob" for method, path, _ in hub.requests if method == "GET")
    assert transfers == 1
    code, out, err = program(home, hub, "weights", "fetch", "tiny_hub")
    assert (code, "Downloading" in err) == (0, False)
    assert sum(path == "/cdn/blob" for method, path, _ in hub.requests if method == "GET") == 1
    code, out, _ = program(home, hub, "weights", "where", "tiny_hub", HF_HUB_OFFLINE="1")
    assert (code, out.strip()) == (0, found["path"])
    code, out, _ = program(home, hub, "weights", "list", "--json", HF_HUB_OFFLINE="1")
    assert {name: row["here"] for name, row in json.loads(out).items() if name in {"tiny_hub", "uni", "mini"}} == {
        "tiny_hub": "yes",
        "uni": "no",
        "mini": "yes",
    }


def test_a_cut_transfer_resumes_where_it_was_cut(home: Path, hub: Hub) -> None:
    chunk = 10 << 20  # bytes that huggingface_hub keeps at a time
    hub.content, hub.cut_after = os.urandom(chunk * 2), chunk + 1000
    code, _, err = program(home, hub, "weights", "fetch", "tiny_hub")
    assert code == 0, err
    ranges = [bytes_ for method, path, bytes_ in hub.requests if (method, path) == ("GET", "/cdn/blob")]
    assert ranges[0] is None
    assert ranges[-1] is not None
    assert ranges[-1].startswith(f"bytes={chunk}-")


def test_tampered_bytes_are_refused_and_removed(home: Path, hub: Hub) -> None:
    hub.tampered = True
    code, out, err = program(home, hub, "weights", "fetch", "tiny_hub")
    assert (code, out) == (2, "")
    assert "was changed on its way: SHA-256" in err
    assert [
        file for file in (home / "hf").rglob("*") if file.is_file() and file.stat().st_size == len(hub.content)
    ] == []
    hub.tampered = False
    assert program(home, hub, "weights", "fetch", "tiny_hub")[0] == 0


def test_another_digest_than_the_presets_is_refused_before_the_download(home: Path, hub: Hub) -> None:
    write_preset(home, more=f'sha256 = "{"0" * 64}"')
    code, _, err = program(home, hub, "weights", "fetch", "tiny_hub")
    assert code == 2
    assert f"is another file: its SHA-256 is {hub.digest} instead of 000" in err
    assert not any(method == "GET" for method, *_ in hub.requests)


def test_a_pinned_revision_is_asked_for_and_one_that_is_not_there_is_named(home: Path, hub: Hub) -> None:
    write_preset(home, more=f'revision = "{COMMIT}"')
    assert program(home, hub, "weights", "fetch", "tiny_hub")[0] == 0
    assert hub.requests[0][1] == f"/{REPOSITORY}/resolve/{COMMIT}/model.safetensors"
    write_preset(home, more=f'revision = "{"b" * 40}"')
    code, _, err = program(home, hub, "weights", "fetch", "tiny_hub")
    assert code == 2
    assert f"at revision {'b' * 40}. Correct the preset" in err


def test_a_gated_file_states_where_to_ask_and_comes_with_a_token(home: Path, hub: Hub) -> None:
    write_preset(home, gated='gated = "https://example.org/ask"')
    hub.gated = True
    code, _, err = program(home, hub, "weights", "fetch", "tiny_hub")
    assert code == 2
    assert "someone/some-vit is gated: ask for access at https://example.org/ask, then set HF_TOKEN" in err
    code, _, err = program(home, hub, "weights", "fetch", "tiny_hub", HF_TOKEN="hf_secret")  # noqa: S106 - of the test
    assert code == 0, err
    assert "Bearer hf_secret" in hub.tokens
    assert "hf_secret" not in err


def test_offline_and_without_a_server_the_way_out_is_one_sentence(home: Path, hub: Hub) -> None:
    code, _, err = program(home, hub, "weights", "fetch", "tiny_hub", HF_HUB_OFFLINE="1")
    assert code == 2
    assert "is not on this machine, and HF_HUB_OFFLINE is set. Unset it" in err
    code, _, err = program(home, hub, "weights", "fetch", "tiny_hub", HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 2
    assert "from http://127.0.0.1:9" in err
    assert "pass --weights FILE" in err
    assert "Traceback" not in err
    assert hub.requests == []


def test_what_is_not_on_the_hub_is_named(home: Path, hub: Hub) -> None:
    code, _, err = program(home, hub, "weights", "fetch", "mini")
    assert code == 2
    assert "The weights of mini are not on the Hugging Face hub" in err


def test_a_run_downloads_what_it_needs_and_a_plan_only_states_it(home: Path, hub: Hub) -> None:
    asked = (
        "--methods",
        "linear",
        "--datasets",
        "phantom_ct",
        "--backbone",
        "tiny_hub",
        "--no-baselines",
        "--seeds",
        "0",
    )
    code, out, err = program(home, hub, "plan", *asked, "--recipe", "quick")
    assert code == 0, err
    assert "`run` would first download the weights: someone/some-vit on the Hugging Face hub" in out
    assert hub.requests == []
    offline = program(home, hub, "run", *asked, "--recipe", "quick", HF_HUB_OFFLINE="1")
    assert offline[0] == 2
    assert offline[2].splitlines()[-1].startswith("peftbench: someone/some-vit on the Hugging Face hub")
    assert not (home / "runs").exists()
    short = ("--recipe", "quick", "--steps", "2", "--evaluations", "1", "--jobs", "1")
    code, out, err = program(home, hub, "run", *asked, *short)
    assert code == 0, err + out
    assert "Downloading the weights of tiny_hub" in err
    record = json.loads(next((home / "runs" / "jobs").glob("*/record.json")).read_text())
    assert record["backbone"]["digest"] == hub.digest
