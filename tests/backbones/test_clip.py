"""The CLIP towers compute what open_clip computes before its projection, from the same file."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import save_file
from torch import Tensor, nn

from peftbench.backbones._preset import preset_class
from peftbench.backbones.open_clip import OpenCLIP
from peftbench.core.contract import Backbone
from peftbench.errors import RequestError, UnknownNameError, WeightsError

ClipViTB16 = preset_class("clip_vit_b16")
PLAIN = "ViT-B-16/laion2b_s34b_b88k"
QUICK = "ViT-B-16-quickgelu/openai"


def their_tower(architecture: str, layers: int) -> nn.Module:
    """Return the first blocks of open_clip's image tower, with random values so that every part has an effect."""
    config = open_clip.get_model_config(architecture) or {}
    shape = config["vision_cfg"] | {"layers": layers}
    tower: nn.Module = _build_vision_tower(config["embed_dim"], shape, config.get("quick_gelu", False)).eval()
    torch.manual_seed(0)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.05)
    return tower


def as_file(tower: nn.Module, file: Path) -> Path:
    """Write a safetensors file of the whole model, as open_clip saves it, with a tensor of the text tower."""
    save_file({f"visual.{n}": t for n, t in tower.state_dict().items()} | {"logit_scale": torch.ones(1)}, file)
    return file


def features(tower: nn.Module, x: Tensor) -> Tensor:
    setattr(tower, "proj", None)  # noqa: B010 - the projection is no module
    with torch.inference_mode():
        return torch.as_tensor(tower(x))


@pytest.mark.parametrize(
    ("backbone", "architecture", "layers"),
    [
        (ClipViTB16(), "ViT-B-16-quickgelu", 12),
        (OpenCLIP(QUICK, depth=2), "ViT-B-16-quickgelu", 2),
        (OpenCLIP(PLAIN, depth=2), "ViT-B-16", 2),
    ],
    ids=["clip_vit_b16", "quick GELU", "plain GELU"],
)
def test_features_equal_open_clips_before_the_projection(
    backbone: Backbone, architecture: str, layers: int, tmp_path: Path
) -> None:
    theirs, x = their_tower(architecture, layers), torch.randn(1, 3, 224, 224)
    with torch.device("meta"):
        own = backbone.network(None).eval()
    backbone.load(own.to_empty(device="cpu"), as_file(theirs, tmp_path / "open_clip_model.safetensors"))
    with torch.inference_mode():
        assert torch.allclose(own(x), features(theirs, x), rtol=0, atol=1e-5)


def test_the_papers_backbone_has_as_many_weights_as_the_paper_states() -> None:
    with torch.device("meta"):
        vit = ClipViTB16().network(None)
    assert sum(p.numel() for p in vit.parameters()) == 85_799_424
    assert vit.norm.eps == 1e-5


def test_both_use_clips_mean_and_spread() -> None:
    assert ClipViTB16().preprocessing(None) == OpenCLIP(QUICK).preprocessing(None)
    assert ClipViTB16().preprocessing(None).mean == (0.48145466, 0.4578275, 0.40821073)


def test_missing_weights_say_where_they_are_to_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    message = (
        r"peftbench weights fetch clip_vit_b16.*timm/vit_base_patch16_clip_224\.openai .* open_clip_model\.safetensors"
        r".*about 600.*clip_vit_b16\.safetensors.*--weights"
    )
    with pytest.raises(WeightsError, match=message):
        ClipViTB16().weights(None)
    with pytest.raises(WeightsError, match="laion/CLIP-ViT-B-16-laion2B-s34B-b88K on the Hugging Face hub"):
        OpenCLIP(PLAIN).weights(None)


@pytest.mark.parametrize("argument", ["ViT-B-61/openai", "ViT-B-16/laion", "ViT-B-16"])
def test_an_unknown_architecture_or_tag_answers_with_what_there_is(argument: str) -> None:
    with pytest.raises(UnknownNameError, match="There are"):
        OpenCLIP(argument)


def test_weights_of_the_quick_gelu_are_refused_on_the_plain_one() -> None:
    with pytest.raises(RequestError, match="ViT-B-16-quickgelu/openai"):
        OpenCLIP("ViT-B-16/openai")


@pytest.mark.parametrize("argument", ["ViT-B-16-SigLIP/webli", "RN50/openai", "ViT-L-14-CLIPA/datacomp1b"])
def test_towers_of_another_build_are_refused_with_another_way(argument: str) -> None:
    with pytest.raises(RequestError, match=r"[uU]se \S+"):
        OpenCLIP(argument)
