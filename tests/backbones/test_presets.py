"""Presets state what the source library states, build on every supported timm, and compute what it computes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.layers.mlp import SwiGLUPacked
from timm.models import get_pretrained_cfg
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftbench.backbones._preset import Preset, preset_class
from peftbench.cli import list as listing
from peftbench.core import presets
from peftbench.core.catalogue_files import backbone_names
from peftbench.core.contract import Preprocessing
from peftbench.core.registry import registry
from peftbench.data.decode import to_square
from peftbench.errors import CatalogueError, PluginError, RequestError
from peftbench.models.backbone import locate
from peftbench.testing import check_backbone, failed

REQUIRED = """
    mini clip_vit_b16 clip_vit_l14 siglip2_b16 dinov2_s14 dinov2_b14 dinov2_l14 dinov2_reg_s14 dinov2_reg_b14
    dinov2_reg_l14 dinov3_s16 dinov3_b16 dinov3_l16 mae_b16 mae_l16 augreg_in21k_b16 eva02_b14 biomedclip rad_dino
    retfound_cfp retfound_oct phikon_v2 uni uni2_h h_optimus_0 virchow2 eva_x_b16 medsiglip
"""
FROM_TIMM = [name for name in backbone_names() if presets.preset(name).weights.repository.startswith("timm/")]


def shallow(name: str, depth: int = 1) -> Preset:
    return preset_class(name)(depth=depth)


def randomized(vit: nn.Module) -> nn.Module:
    """Return the network with random values, so that every part has an effect."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05 + (parameter.dim() == 1))
    return vit.eval()


def assert_same_features(ours: Preset, theirs: nn.Module, features: Any, file: Path, side: int | None = None) -> None:
    """Compare features of random images after the file of their tensors is loaded as published weights are."""
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, file)
    vit = ours.network(side).eval()
    ours.load(vit, file)
    size = ours.preprocessing(side).size
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(vit(x), features(x), rtol=0, atol=1e-5)


# --- what presets state -----------------------------------------------------------------------------------------------


def test_there_is_a_preset_of_every_backbone_that_is_needed() -> None:
    assert set(REQUIRED.split()) <= set(backbone_names())


@pytest.mark.parametrize("name", backbone_names())
def test_a_preset_states_what_a_reader_needs(name: str) -> None:
    known = presets.preset(name)
    assert known.licence != "unknown"
    assert known.pretraining
    assert known.citation or name == "mini"
    assert bool(known.weights.repository) != bool(known.weights.shipped)
    assert known.weights.revision == "" or len(known.weights.revision) == 40


@pytest.mark.parametrize("name", backbone_names())
def test_a_preset_keeps_the_rules_of_backbones(name: str) -> None:
    assert failed(check_backbone(shallow(name))) == []


@pytest.mark.parametrize("name", FROM_TIMM)
def test_preprocessing_and_place_are_those_of_timm(name: str) -> None:
    known = presets.preset(name)
    tag = known.weights.repository.rpartition(".")[2]
    config = get_pretrained_cfg(f"{known.architecture.partition('.')[0]}.{tag}")
    assert config is not None
    given = known.input
    assert (given.size, given.mean, given.std) == (config.input_size[-1], config.mean, config.std)
    assert given.interpolation == config.interpolation
    assert config.hf_hub_id == known.weights.repository
    if name != "clip_vit_b16":  # its notes give the reason
        assert given.crop == config.crop_pct


@pytest.mark.parametrize("name", backbone_names())
def test_a_fact_that_no_test_compares_is_not_called_checked(name: str) -> None:
    sure = presets.preset(name).confidence
    assert sure.input != "checked" or name in FROM_TIMM
    assert "checked" not in {sure.licence, sure.pretraining}


def test_every_data_set_named_in_an_overlap_exists() -> None:
    for name in backbone_names():
        for dataset in presets.preset(name).overlap:
            kind, _, member = dataset.partition(":")
            assert kind in registry("datasets").names()
            if member:
                from peftbench.core.catalogue import dataset_entry  # noqa: PLC0415 - of one assertion

                assert member in dataset_entry(kind).members


def test_the_listing_shows_every_preset() -> None:
    rows = listing._rows("backbones", Path())
    assert set(rows) == {*backbone_names(), "timm", "open_clip"}
    assert rows["uni"]["weights"] == "hub, gated"
    assert rows["mini"]["weights"] == "in the package"
    assert {rows[name]["what"] == presets.preset(name).title for name in backbone_names()} == {True}


# --- the same features as the source ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mini", *FROM_TIMM])
def test_features_are_those_of_timms_own_network(name: str, tmp_path: Path) -> None:
    known, ours = presets.preset(name), shallow(name)
    side = known.input.size if known.input.size <= 256 else known.input.size // 2 // 14 * 14
    sizes: dict[str, Any] = {**known.options, "depth": 1, "img_size": side}
    theirs = randomized(timm.create_model(known.architecture, num_classes=0, global_pool=known.pooling, **sizes))

    def features(x: Tensor) -> Tensor:
        return theirs.forward_head(theirs.forward_features(x), pre_logits=True)  # type: ignore[operator, no-any-return]

    assert_same_features(ours, theirs, features, tmp_path / "model.safetensors", side)


UNI2_H: dict[str, Any] = {  # the arguments on its page
    "img_size": 224,
    "patch_size": 14,
    "depth": 1,
    "num_heads": 24,
    "init_values": 1e-5,
    "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2,
    "num_classes": 0,
    "no_embed_class": True,
    "mlp_layer": SwiGLUPacked,
    "act_layer": torch.nn.SiLU,
    "reg_tokens": 8,
    "dynamic_img_size": True,
}


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("uni", partial(timm.create_model, "vit_large_patch16_224", init_values=1e-5, dynamic_img_size=True)),
        ("uni2_h", partial(VisionTransformer, **UNI2_H)),
        ("h_optimus_0", partial(timm.create_model, "vit_giant_patch14_reg4_dinov2", img_size=224, init_values=1e-5)),
    ],
)
def test_features_of_pathology_networks_are_those_of_their_pages(name: str, build: Any, tmp_path: Path) -> None:
    theirs = randomized(build(num_classes=0, depth=1) if name != "uni2_h" else build())
    assert_same_features(shallow(name), theirs, theirs, tmp_path / "model.safetensors")


def test_virchow2_joins_its_class_token_and_the_mean_of_its_patches(tmp_path: Path) -> None:
    theirs = randomized(
        timm.create_model(
            "vit_huge_patch14_224",
            depth=1,
            num_classes=0,
            init_values=1e-5,
            mlp_ratio=5.3375,
            reg_tokens=4,
            global_pool="",
            dynamic_img_size=True,
            mlp_layer=SwiGLUPacked,
            act_layer=torch.nn.SiLU,
        )
    )

    def features(x: Tensor) -> Tensor:
        tokens = theirs(x)
        return torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=-1)  # as on its page

    assert_same_features(shallow("virchow2"), theirs, features, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("eva_x_s16", {"embed_dim": 384, "num_heads": 6}),
        ("eva_x_b16", {"embed_dim": 768, "num_heads": 12, "qkv_fused": False, "scale_mlp": True}),
    ],
)
def test_features_of_eva_x_are_those_of_its_authors_network(name: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    theirs = randomized(
        Eva(
            img_size=224,
            patch_size=16,
            depth=1,
            mlp_ratio=4 * 2 / 3,
            swiglu_mlp=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(14, 14),
            num_classes=0,
            **sizes,
        )
    )
    assert_same_features(shallow(name), theirs, theirs, tmp_path / "model.safetensors")


# --- preprocessing ----------------------------------------------------------------------------------------------------


def test_a_cropped_image_has_the_pixels_of_timms_transform() -> None:
    vit = timm.create_model("vit_tiny_patch16_224.augreg_in21k", num_classes=0)
    config: dict[str, Any] = resolve_model_data_config(vit)  # type: ignore[no-untyped-call]  # timm's
    theirs: Any = create_transform(**config, is_training=False)
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(300, 450, 3), dtype=np.uint8))
    ours = Preprocessing(224, config["mean"], config["std"], config["interpolation"], "crop", config["crop_pct"])
    pixels = np.asarray(to_square(picture, ours), np.float32) / 255
    normalized = (pixels - np.array(ours.mean)) / np.array(ours.std)
    assert config["crop_pct"] == 0.9
    np.testing.assert_allclose(normalized.transpose(2, 0, 1), theirs(picture).numpy(), atol=1e-5)


def test_ids_and_records_hold_a_crop_only_if_there_is_one() -> None:
    whole = Preprocessing(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    cropped = Preprocessing(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), fit="crop", crop=0.9)
    assert set(whole.stored()) == {"size", "mean", "std", "interpolation", "fit"}
    assert cropped.stored()["crop"] == 0.9
    assert Preprocessing.restored(cropped.stored()) == cropped


# --- a user's own -----------------------------------------------------------------------------------------------------

OWN = """
title = "Our clinic's ViT"
base = "dinov2_s14"
pooling = "avg"

[input]
mean = [0.2, 0.2, 0.2]
std = [0.25, 0.25, 0.25]

[weights]
path = "ours.safetensors"
prefix = "encoder."
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a preset in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backbones").mkdir()
    file = tmp_path / "backbones" / "ours.toml"
    file.write_text(OWN)
    return file


def test_a_users_preset_replaces_some_values_of_its_base(own: Path) -> None:
    assert own.exists()
    source = locate("ours", blank=True)
    assert source.preprocessing == Preprocessing(518, (0.2, 0.2, 0.2), (0.25, 0.25, 0.25))
    assert presets.preset("ours").architecture == "vit_small_patch14_dinov2"
    assert set(presets.preset("ours").confidence.model_dump().values()) == {"unverified"}
    assert "ours" in registry("backbones").names()
    assert listing._rows("backbones", Path())["ours"]["source"] == "backbones/ours.toml"


def test_a_users_preset_loads_its_own_file(own: Path) -> None:
    theirs = locate("dinov2_s14[depth=1,img_size=56]@random").build(3)
    content = {f"encoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    save_file(content, own.parents[1] / "ours.safetensors")
    vit = locate("ours[depth=1,img_size=56]").build(0)
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(vit.get_parameter(name), theirs.get_parameter(name))


def test_the_network_of_a_users_preset_is_part_of_an_id_and_that_of_a_built_in_one_is_not(own: Path) -> None:
    before = locate("ours", blank=True).network_digest
    own.write_text(OWN.replace('pooling = "avg"', 'pooling = "token"'))
    assert len(before) == 16
    assert locate("ours", blank=True).network_digest != before
    assert {locate(name, blank=True).network_digest for name in backbone_names()} == {""}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('architecture = "vit_nothing"', "Backbone ours: timm .* cannot build 'vit_nothing'"),
        ('architecture = "resnet18"', "Backbone ours: timm .* cannot build 'resnet18'"),
        ('pooling = "sum"', "ours.toml: key 'pooling' must be 'token', 'avg', 'map' or 'both', got sum"),
        ('base = "resnet"', "base = 'resnet' is no built-in preset"),
        ('colour = "red"', "ours.toml: key 'colour' must be left out"),
        ("[input]\nmean = [123.7, 116.3, 103.5]", "mean and std must be those of pixels in 0..1"),
        ('[weights]\nsha256 = "12"', "sha256 must be 64 hexadecimal digits"),
        ('[weights]\nfile = "x.pt"', "repository and file must be given together"),
        ('base = "mini"\npooling = "both"\noptions = {class_token = false}', "Backbone ours"),
    ],
)
def test_a_wrong_preset_is_one_sentence_with_the_file_and_the_key(line: str, message: str, own: Path) -> None:
    base = "" if line.startswith("base") else 'base = "dinov2_s14"\n'
    own.write_text(f'title = "x"\n{base}{line}\n')
    with pytest.raises(CatalogueError, match=message):
        locate("ours", blank=True).blank()


def test_a_preset_named_as_a_built_in_one_is_refused(own: Path) -> None:
    own.rename(own.with_name("mini.toml"))
    with pytest.raises(CatalogueError, match="'mini' is the name of a built-in backbone"):
        registry("backbones").names()
    (own.parent / "mini.toml").rename(own.with_name("timm.toml"))
    with pytest.raises(PluginError, match=r"called 'timm' already; rename the file backbones/timm\.toml"):
        registry("backbones").names()


def test_a_field_that_presets_do_not_have_is_refused() -> None:
    with pytest.raises(RequestError, match="clip_vit_b16 has no field 'layers'"):
        locate("clip_vit_b16[layers=3]", blank=True)
