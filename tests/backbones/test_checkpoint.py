"""Checkpoints as people have them: what is taken is stated, and the rest is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftbench.backbones._preset import preset_class
from peftbench.backbones._shared import fill
from peftbench.errors import WeightsError

SIZES: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}


def small(seed: int = 0, **options: Any) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(**{"img_size": 32, **SIZES, **options})


def tensors(vit: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: tensor.clone() for name, tensor in vit.state_dict().items()}


def assert_loaded(vit: nn.Module, theirs: nn.Module) -> None:
    found = vit.state_dict()
    assert [name for name, tensor in theirs.state_dict().items() if not torch.equal(found[name], tensor)] == []


def loaded(content: object, tmp_path: Path, name: str = "weights.pth") -> tuple[VisionTransformer, list[str]]:
    torch.save(content, tmp_path / name)
    vit = small(seed=9)
    return vit, fill(vit, tmp_path / name)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "backbone.",
        "encoder.",
        "visual.",
        "visual.trunk.",
        "module.model.backbone.",
        "teacher.backbone.",
        "student.",
        "model._orig_mod.module.",
    ],
)
def test_prefixes_of_names_are_taken_off(prefix: str, tmp_path: Path) -> None:
    theirs = small(1)
    vit, _ = loaded(tensors(theirs, prefix), tmp_path)
    assert_loaded(vit, theirs)


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema", "model_ema", "teacher", "student", "module"])
def test_a_nested_state_dict_is_found(key: str, tmp_path: Path) -> None:
    theirs = small(1)
    vit, notes = loaded({key: tensors(theirs), "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path)
    assert_loaded(vit, theirs)
    assert notes == []


def test_averaged_weights_are_preferred_and_the_choice_is_stated(tmp_path: Path) -> None:
    averaged = small(1)
    vit, notes = loaded({"state_dict": tensors(small(2)), "state_dict_ema": tensors(averaged)}, tmp_path)
    assert_loaded(vit, averaged)
    assert notes == ["weights.pth: took 'state_dict_ema' (averaged weights), and left out 'state_dict'."]


@pytest.mark.parametrize("nested", [True, False])
def test_the_teacher_is_preferred_to_the_student(nested: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter
    teacher, student = small(1), small(2)
    content: dict[str, Any] = (
        {"student": tensors(student, "backbone."), "teacher": tensors(teacher, "backbone.")}
        if nested
        else {**tensors(student, "student.backbone."), **tensors(teacher, "teacher.backbone.")}
    )
    vit, notes = loaded(content, tmp_path)
    assert_loaded(vit, teacher)
    assert "averaged weights" in notes[0]
    assert "student" in notes[0]


def test_two_backbones_without_a_preference_are_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds several backbones: 'encoder\.', 'visual\.'\. State one"):
        loaded({**tensors(small(1), "encoder."), **tensors(small(2), "visual.")}, tmp_path)


def test_heads_and_text_towers_beside_the_backbone_are_left_out_and_counted(tmp_path: Path) -> None:
    theirs = small(1)
    content = tensors(theirs, "model.backbone.") | {"model.dino_head.weight": torch.zeros(2), "text.w": torch.zeros(1)}
    vit, notes = loaded(content, tmp_path)
    assert_loaded(vit, theirs)
    assert notes == ["weights.pth: took the tensors named model.backbone...., and left out 2 others."]


def test_the_decoder_of_a_masked_autoencoder_is_left_out_and_stated(tmp_path: Path) -> None:
    theirs = small(1)
    decoder = {name: torch.zeros(2) for name in ("mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight")}
    vit, notes = loaded({"model": tensors(theirs) | decoder, "args": 0}, tmp_path)
    assert_loaded(vit, theirs)
    assert notes == ["weights.pth: the decoder of its pretraining was left out (2 tensors)."]


@pytest.mark.parametrize("name", ["W.PT", "W.PTH", "W.SAFETENSORS", "w.bin", "w.ckpt"])
def test_suffixes_may_have_capital_letters(name: str, tmp_path: Path) -> None:
    theirs, vit = small(1), small(9)
    if name.endswith("SAFETENSORS"):
        save_file(tensors(theirs), tmp_path / name)
    else:
        torch.save(tensors(theirs), tmp_path / name)
    fill(vit, tmp_path / name)
    assert_loaded(vit, theirs)


def test_weights_that_are_no_numbers_are_refused_with_the_tensor(tmp_path: Path) -> None:
    content = tensors(small(1), "module.")
    content["module.blocks.1.mlp.fc2.weight"][0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc2\.weight holds NaN"):
        loaded({"state_dict": content}, tmp_path)


def test_a_presets_prefix_decides_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    left, right = small(1), small(2)
    torch.save({**tensors(left, "left."), **tensors(right, "right.")}, tmp_path / "w.pt")
    vit = small(9)
    fill(vit, tmp_path / "w.pt", prefix="right.")
    assert_loaded(vit, right)
    with pytest.raises(WeightsError, match=r"no tensor whose name begins with 'middle\.'\. Correct weights\.prefix"):
        fill(vit, tmp_path / "w.pt", prefix="middle.")


@pytest.mark.parametrize(
    ("options", "alone"),
    [
        ({}, 1),
        ({"reg_tokens": 4}, 5),
        ({"reg_tokens": 4, "no_embed_class": True}, 0),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, 0),
    ],
    ids=["class token", "registers", "registers without positions", "no class token"],
)
def test_positions_are_resampled_as_timm_does(options: dict[str, Any], alone: int, tmp_path: Path) -> None:
    theirs, vit = small(1, **options), small(9, img_size=48, **options)
    torch.save(tensors(theirs, "module."), tmp_path / "w.pt")
    fill(vit, tmp_path / "w.pt")
    positions = theirs.pos_embed
    assert positions is not None
    expected = resample_abs_pos_embed(positions, [6, 6], num_prefix_tokens=alone)
    torch.testing.assert_close(vit.get_parameter("pos_embed"), expected, rtol=0, atol=0)


def test_positions_of_an_eva_network_are_resampled_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {**SIZES, "use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}
    theirs, vit = Eva(img_size=32, **options), Eva(img_size=48, **options)
    torch.save(tensors(theirs, "model."), tmp_path / "w.pt")
    fill(vit, tmp_path / "w.pt")
    positions = theirs.pos_embed
    assert positions is not None
    torch.testing.assert_close(
        vit.get_parameter("pos_embed"), resample_abs_pos_embed(positions, [6, 6]), rtol=0, atol=0
    )
    assert torch.isfinite(vit(torch.zeros(1, 3, 48, 48))).all()


# --- the names of other libraries -------------------------------------------------------------------------------------


def randomized(network: Any) -> Any:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05 + (parameter.dim() == 1))
    return network.eval()


def images(side: int) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def assert_features(vit: nn.Module, x: Tensor, expected: Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(vit.eval()(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "patch", "registers"), [("rad_dino", 14, 0), ("phikon_v2", 16, 0), ("dinov2_reg_s14", 14, 4)]
)
def test_dinov2_of_transformers_gives_the_same_features(name: str, patch: int, registers: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    preset = preset_class(name)(depth=1, img_size=56 if patch == 14 else 64)
    vit = preset.network(None)
    sizes: dict[str, Any] = {
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": 1,
        "num_attention_heads": vit.embed_dim // 64,
        "image_size": preset.preprocessing(None).size,
        "patch_size": patch,
    }
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        theirs = randomized(transformers.Dinov2WithRegistersModel(config))
    else:
        theirs = randomized(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)))
    theirs.save_pretrained(tmp_path)
    preset.load(vit, tmp_path / "model.safetensors")
    x = images(preset.preprocessing(None).size)
    with torch.inference_mode():
        expected = theirs(x).pooler_output
    assert_features(vit, x, expected)


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("medsiglip", "Siglip", {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}),
        ("clip_vit_b16", "CLIP", {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}),
    ],
)
def test_image_towers_of_transformers_give_the_same_features(
    name: str, kind: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    patch = {"Siglip": 14, "CLIP": 16}[kind]
    preset = preset_class(name)(depth=1, img_size=4 * patch)
    vit = preset.network(None)
    config = getattr(transformers, f"{kind}VisionConfig")(
        **sizes, num_hidden_layers=1, image_size=4 * patch, patch_size=patch
    )
    theirs = randomized(getattr(transformers, f"{kind}VisionModel")(config))
    theirs.save_pretrained(tmp_path)
    preset.load(vit, tmp_path / "model.safetensors")
    with torch.inference_mode():
        expected = theirs(images(4 * patch)).pooler_output
    assert_features(vit, images(4 * patch), expected)


def test_biomedclips_tower_gives_the_features_of_open_clip(tmp_path: Path) -> None:
    """Its configuration in open_clip names timm's ViT-B/16 with a linear projection."""
    tower = TimmModel("vit_base_patch16_224", 512, image_size=224, pool="", proj="linear")
    trunk = randomized(timm.create_model("vit_base_patch16_224", num_classes=0, depth=1))
    tower.trunk = trunk
    state = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()} | {"logit_scale": torch.ones(1)}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    preset = preset_class("biomedclip")(depth=1)
    vit = preset.network(None)
    preset.load(vit, tmp_path / "open_clip_pytorch_model.bin")
    tower.head = nn.Sequential()
    with torch.inference_mode():
        expected = tower.eval()(images(224))
    assert_features(vit, images(224), expected)


def test_dinov2s_own_file_with_registers_gives_its_tokens(tmp_path: Path) -> None:
    theirs = small(1, reg_tokens=2, no_embed_class=True, init_values=1.0)
    state = tensors(theirs)
    positions = torch.cat([torch.zeros(1, 1, 16), state.pop("pos_embed")], dim=1)
    file = state | {
        "register_tokens": state.pop("reg_token"),
        "pos_embed": positions,
        "mask_token": torch.zeros(1, 16),
    }
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in file.items()}}, tmp_path / "w.pth")
    vit = small(9, reg_tokens=2, no_embed_class=True, init_values=1.0)
    fill(vit, tmp_path / "w.pth")
    assert_loaded(vit, theirs)
