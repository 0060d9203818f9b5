"""`timm:NAME[depth=...,img_size=...]`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftbench.backbones.timm import Timm
from peftbench.errors import RequestError, UnknownNameError, WeightsError

SMALL = "vit_small_patch14_dinov2"


def test_the_network_has_the_depth_and_size_that_the_brackets_say() -> None:
    with torch.device("meta"):
        vit = Timm(SMALL, depth=8, img_size=112).network(None)
    assert (len(vit.blocks), vit.patch_embed.grid_size, vit.num_classes) == (8, (8, 8), 0)


def test_a_whole_network_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        vit = Timm("vit_base_patch16_224").network(None)
    assert sum(p.numel() for p in vit.parameters()) == 85_798_656


def test_preprocessing_is_that_of_the_pretraining() -> None:
    given = Timm("vit_base_patch16_224.augreg_in21k").preprocessing(None)
    assert (given.size, given.mean, given.std) == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_preprocessing_takes_the_image_size_asked_for() -> None:
    assert Timm(SMALL).preprocessing(112).size == 112


@pytest.mark.parametrize("name", ["vit_smal_patch14_dinov2", f"{SMALL}.lvd142", "resnet50"])
def test_an_unknown_name_answers_with_near_ones(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"timm vision transformer .* There are"):
        Timm(name)


def test_a_misspelt_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean .*{SMALL}"):
        Timm("vit_smal_patch14_dinov2")


def test_a_vision_transformer_of_another_kind_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="deit_tiny_distilled_patch16_224"):
        Timm("deit_tiny_distilled_patch16_224").network(None)


def test_a_depth_below_one_is_refused() -> None:
    with pytest.raises(RequestError, match="depth=0"):
        Timm(SMALL, depth=0)


def test_missing_weights_say_where_they_are_to_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"timm/vit_small_patch14_dinov2\.lvd142m on the Hugging Face hub"):
        Timm(SMALL).weights(None)


def test_the_real_vit_small_loads_and_shortens(weights_root: Path) -> None:
    backbone = Timm(SMALL, depth=8, img_size=112)
    vit = backbone.network(None)
    backbone.load(vit, backbone.weights(weights_root / "vit_small_patch14_dinov2_derived.safetensors"))
    features = vit.eval()(torch.zeros(1, 3, 112, 112))
    assert features.shape == (1, 384)
    assert torch.isfinite(features).all()


def test_the_real_vit_small_is_refused_by_a_base(weights_root: Path) -> None:
    with pytest.raises(WeightsError, match="is for another network"):
        Timm("vit_base_patch14_dinov2", depth=1).load(
            Timm("vit_base_patch14_dinov2", depth=1).network(112),
            weights_root / "vit_small_patch14_dinov2_derived.safetensors",
        )
