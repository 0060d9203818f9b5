"""Use of a finished job: the same logits on any file, one merged file, and a sentence for every refusal."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from peftbench.core.spec import Places
from peftbench.errors import BrokenImagesError, DeltaError, RequestError
from peftbench.inference import predict
from peftbench.inference.merge import merge, plain_tensors
from peftbench.inference.model import open_model
from peftbench.results.store import Store, find_job
from peftbench.training.job import run
from tests import studies

METHODS = ("lora", "shpeft", "linear")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of every kind of change, and one with the paper's head."""
    home = tmp_path_factory.mktemp("home")
    images = studies.draw(home / "images", images=12)
    where = studies.places(home)
    for method in METHODS:
        for job in studies.jobs(studies.small(images, methods=(method,), steps=4), where):
            headed = job if method != "linear" else replace(job, recipe=replace(job.recipe, head="l2", head_scale=16.0))
            assert run(headed, where)
    return home


def folder(home: Path, method: str) -> Path:
    results = Store(home / "runs").results()
    return next(result.folder for result in results if result.record.method.name == method)


def where(home: Path) -> Places:
    return studies.places(home)


def files(home: Path) -> list[Path]:
    return sorted((home / "images").rglob("*.png"))


def test_a_model_in_the_place_of_another_is_refused(home: Path, tmp_path: Path) -> None:
    lent = tmp_path / "jobs" / folder(home, METHODS[0]).name
    shutil.copytree(folder(home, METHODS[0]), lent)
    for name in ("delta.json", "delta.safetensors"):
        shutil.copy(folder(home, METHODS[1]) / name, lent / name)
    with pytest.raises(DeltaError, match=r"delta\.json does not match the digest in the job's record"):
        open_model(lent, where(home))
    (lent / "record.json").unlink()  # the two files are enough without the store
    assert open_model(lent, where(home)).about["method"]["name"] == METHODS[1].partition("[")[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_test_images_get_the_logits_that_the_job_stored(home: Path, method: str) -> None:
    result = next(r for r in Store(home / "runs").results() if r.record.method.name == method)
    logits, _, _ = result.predictions("validation")
    names = json.loads((result.folder / "private.json").read_text())["names"]["test"]
    model = open_model(result.folder, where(home))
    found = np.array([p.probabilities for p in predict.predict(model, [home / "images" / name for name in names])])
    heat = model.about["temperature"]
    expected = torch.from_numpy(logits).double().div(heat).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.merged


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_file_loads_into_plain_timm(home: Path, method: str, tmp_path: Path) -> None:
    off = merge(folder(home, method), where(home), tmp_path / "model.safetensors")
    about = json.loads((tmp_path / "model.safetensors.json").read_text())
    plain = timm.models.VisionTransformer(img_size=64, patch_size=8, embed_dim=192, depth=6, num_heads=3, num_classes=3)
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    model = open_model(folder(home, method), where(home), merge=False)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = plain.eval().forward_head(plain.forward_features(images), pre_logits=True)
        if about["head"]["kind"] == "l2":
            features = about["head"]["scale"] * torch.nn.functional.normalize(features, dim=1)
        torch.testing.assert_close(plain.head(features), model.classifier(images), atol=1e-5, rtol=1e-5)
    assert off <= 1e-5
    assert about["use"] == "For research only; not a medical device."
    assert len(about["base"]) == 64


def test_what_does_not_fold_is_refused_and_named(home: Path, tmp_path: Path) -> None:
    asked = studies.small(home / "images", methods=("vpt_deep",), steps=1, evaluations=1)
    (job,) = studies.jobs(asked, where(home))
    assert run(job, where(home))
    with pytest.raises(RequestError, match=r"vpt_deep cannot be merged: its adapter at blocks\.0 and 5 more places"):
        merge(Store(home / "runs").job(job.id).path, where(home), tmp_path / "model.safetensors")


def test_a_batch_norm_folds_into_the_linear_layer(home: Path) -> None:
    model = open_model(folder(home, "lora"), where(home))
    head = model.classifier.head
    head.norm = torch.nn.BatchNorm1d(192, affine=False, eps=1e-6)
    head.norm(torch.randn(64, 192) * 3 + 1)
    features = torch.randn(5, 192)
    tensors, before = plain_tensors(model.classifier.eval())
    folded = torch.nn.functional.linear(features, tensors["head.weight"], tensors["head.bias"])
    torch.testing.assert_close(folded, head.eval()(features), atol=1e-5, rtol=1e-5)
    assert before == {"kind": "plain", "scale": 1.0}


def test_images_unlike_the_training_images_get_a_warning(home: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 60), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (40, 30), 255).save(tmp_path / "white.png")
    model = open_model(folder(home, "lora"), where(home))
    red, white, usual = predict.predict(model, [tmp_path / "red.png", tmp_path / "white.png", files(home)[0]])
    assert any("in color" in shown for shown in red.warnings)
    assert any("brightness 255" in shown for shown in white.warnings)
    assert any("30 px" in shown for shown in white.warnings)
    assert usual.warnings == ()


def test_an_image_that_does_not_open_is_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    model = open_model(folder(home, "lora"), where(home))
    with pytest.raises(BrokenImagesError, match=r"Cannot decode .*broken\.png"):
        list(predict.predict(model, [tmp_path / "broken.png"]))


def test_the_command_writes_a_table_that_states_what_it_is(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, out = folder(home, "lora").name, tmp_path / "out.csv"
    words = ["predict", job[:6], str(home / "images" / "dots"), "--store", str(home / "runs"), "--out", str(out)]
    assert studies.call(words, monkeypatch) == 0
    text = out.read_text()
    assert "# For research only; not a medical device." in text
    assert "temperature" in text
    table = pd.read_csv(out, comment="#")
    assert list(table.columns) == ["image", "predicted", "dots", "rows", "stripes", "warnings"]
    assert len(table) == 12
    np.testing.assert_allclose(table[["dots", "rows", "stripes"]].sum(axis=1), 1, atol=1e-5)


def test_the_json_holds_the_same(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", str(folder(home, "lora")), str(files(home)[0]), "--store", str(home / "runs"), "--json"]
    assert studies.call(words, monkeypatch) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["predictions"][0]["probabilities"]) == set(studies.CLASSES)
    assert shown["use"] == "For research only; not a medical device."


@pytest.mark.parametrize(("text", "message"), [("nothing", "no job in"), ("", "no job in")])
def test_an_unknown_job(home: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        find_job(home / "runs", text)


def test_a_job_without_a_model_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "abc").mkdir(parents=True)
    with pytest.raises(RequestError, match="abc has no trained model"):
        find_job(tmp_path, "ab")
    with pytest.raises(RequestError, match="holds no image"):
        predict.find_images([tmp_path])
    with pytest.raises(RequestError, match="does not exist"):
        predict.find_images([home / "nowhere"])


def test_other_weights_are_refused(home: Path, tmp_path: Path) -> None:
    weights = load_file(Path(predict.__file__).parents[1] / "backbones" / "mini.safetensors")
    weights["norm.bias"] = weights["norm.bias"] + 1
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(DeltaError, match="was made for the weights"):
        open_model(folder(home, "lora"), replace(where(home), weights=tmp_path / "other.safetensors"))


def test_images_that_cannot_be_decoded_are_left_out_and_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(home / "images" / "dots", images)
    (images / "broken.png").write_bytes(b"no picture")
    words = ["predict", str(folder(home, "lora")), str(images), "--out", str(tmp_path / "out.csv")]
    assert studies.call(words, monkeypatch) == 2
    error = capsys.readouterr().err
    assert "broken.png" in error
    assert "or pass --skip-broken" in error

    assert studies.call([*words, "--skip-broken"], monkeypatch) == 0
    assert "12 images, 1 left out" in capsys.readouterr().out
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600  # it holds names of images
    assert f"# left out: {images / 'broken.png'} (" in (tmp_path / "out.csv").read_text()
    assert len(pd.read_csv(tmp_path / "out.csv", comment="#")) == 12

    assert studies.call([*words[:3], "--skip-broken", "--json"], monkeypatch) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["left_out"]) == [str(images / "broken.png")]
    assert len(printed["predictions"]) == 12


def test_a_folder_of_broken_images_only_has_no_prediction(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    words = ["predict", str(folder(home, "lora")), str(tmp_path / "broken.png"), "--skip-broken"]
    assert studies.call(words, monkeypatch) == 2
    assert "Cannot decode 1 image: " in capsys.readouterr().err
    broken: dict[str, str] = {}
    assert list(predict.predict(open_model(folder(home, "lora"), where(home)), [tmp_path / "broken.png"], broken)) == []
    assert list(broken) == [str(tmp_path / "broken.png")]
