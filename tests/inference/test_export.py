"""A job's model for other software: a folder that timm loads, and an ONNX file from pixels to probabilities."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from peftbench.core.spec import Places
from peftbench.errors import RequestError
from peftbench.inference import huggingface, onnx
from peftbench.inference.model import open_model
from peftbench.inference.predict import predict
from peftbench.results.store import Store
from peftbench.training.job import run
from tests import studies

METHODS = ("lora", "linear", "vpt_deep")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job that merges, one with the paper's head, and one whose prompts do not merge."""
    home = tmp_path_factory.mktemp("home")
    images = studies.draw(home / "ward of Zyxwora" / "images", images=12)
    where = studies.places(home)
    for method in METHODS:
        for job in studies.jobs(studies.small(images, methods=(method,), steps=4), where):
            headed = job if method != "linear" else replace(job, recipe=replace(job.recipe, head="l2", head_scale=16.0))
            assert run(headed, where)
    return home


def folder(home: Path, method: str) -> Path:
    return next(r.folder for r in Store(home / "runs").results() if r.record.method.name == method)


def where(home: Path) -> Places:
    return studies.places(home)


def images(home: Path) -> list[Path]:
    return sorted((home / "ward of Zyxwora").rglob("*.png"))[:5]


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def test_timm_loads_the_folder_and_computes_the_same_logits(home: Path, tmp_path: Path) -> None:
    off = huggingface.write_folder(folder(home, "lora"), where(home), tmp_path / "hub")
    model = open_model(folder(home, "lora"), where(home), merge=False)
    plain = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(plain(pixels), model.classifier(pixels), atol=1e-5, rtol=1e-5)
    assert off <= 1e-5
    assert {file.name for file in (tmp_path / "hub").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert [file.name for file in tmp_path.iterdir()] == ["hub"]


def test_timm_s_own_transform_gives_the_probabilities_of_predict(home: Path, tmp_path: Path) -> None:
    huggingface.write_folder(folder(home, "lora"), where(home), tmp_path / "hub")
    model = open_model(folder(home, "lora"), where(home))
    plain = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(plain), is_training=False)  # type: ignore[no-untyped-call] # of timm
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["label_names"] == list(studies.CLASSES)
    heat = config["peftbench"]["temperature"]
    pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in images(home)])
    with torch.inference_mode():
        found = (plain(pixels) / heat).softmax(dim=1).numpy()
    wanted = [one.probabilities for one in predict(model, images(home))]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_model_card_states_data_scores_limits_and_licences_and_no_path(home: Path, tmp_path: Path) -> None:
    huggingface.write_folder(folder(home, "lora"), where(home), tmp_path / "hub")
    text = (tmp_path / "hub" / "README.md").read_text()
    for part in (
        "For research only; not a medical device.",
        "| train | 27 | 27 | 9 | 9 | 9 |",
        "| macro_f1 | ",
        "95% interval",
        "another site",
        "- backbone: Apache-2.0 code",
        "- data: the user's own",
        "calibration temperature",
        "folder:images",
    ):
        assert part in text, part
    assert all(b"Zyxwora" not in file.read_bytes() for file in (tmp_path / "hub").iterdir())


def test_without_a_record_the_card_states_that_scores_are_unknown(home: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("delta.json", "delta.safetensors"):
        (alone / name).write_bytes((folder(home, "lora") / name).read_bytes())
    huggingface.write_folder(alone, where(home), tmp_path / "hub")
    assert "Its scores are unknown" in (tmp_path / "hub" / "README.md").read_text()


@pytest.mark.parametrize(("method", "reason"), [("linear", "normalizes features"), ("vpt_deep", "cannot be merged")])
def test_what_plain_timm_cannot_compute_is_refused(home: Path, tmp_path: Path, method: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        huggingface.write_folder(folder(home, method), where(home), tmp_path / "hub")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub").write_text("")
    words = ["merge", str(folder(home, "lora")), "--to", "huggingface", "-o", str(tmp_path / "hub")]
    assert studies.call(words, monkeypatch) == 2
    assert "is a file" in capsys.readouterr().err


# --- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(all(map(find_spec, onnx.NEEDED)), reason="the extra onnx is installed")
def test_without_the_extra_the_command_to_install_it_is_given(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"needs \w+; install it: pip install 'peftbench\[onnx\]'"):
        onnx.write_file(folder(home, "lora"), where(home), tmp_path / "model.onnx")


@pytest.mark.filterwarnings("ignore")  # of onnxscript and torch's exporter
@pytest.mark.parametrize("method", METHODS)
def test_onnxruntime_gives_the_probabilities_of_predict(home: Path, tmp_path: Path, method: str) -> None:
    for name in onnx.NEEDED:
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    assert onnx.write_file(folder(home, method), where(home), out) <= 1e-4
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    pixels = np.stack([np.asarray(Image.open(f).convert("RGB")).transpose(2, 0, 1) for f in images(home)])
    (found,) = session.run(["probabilities"], {"images": pixels})
    wanted = [one.probabilities for one in predict(open_model(folder(home, method), where(home)), images(home))]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["classes"]) == list(studies.CLASSES)
    assert json.loads(notes["preprocessing"])["size"] == 64
    assert notes["use"] == "For research only; not a medical device."
    content = out.read_bytes()
    assert all(word not in content for word in (b"Zyxwora", b".py", str(Path.cwd()).encode()))
