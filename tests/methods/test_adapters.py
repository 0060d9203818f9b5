"""Adapters: what each computes, written out again from its paper, and that those which fold do so exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.errors import PluginError, RequestError
from peftbench.methods.adapter_houlsby import AdapterHoulsby
from peftbench.methods.adapter_pfeiffer import AdapterPfeiffer
from peftbench.methods.adapter_plus import AdapterPlus
from peftbench.methods.arc import ARC
from peftbench.methods.convpass import Convpass
from peftbench.methods.rep_adapter import RepAdapter
from peftbench.methods.rlrr import RLRR
from peftbench.models.method import Method, NoProbe
from tests.networks import STYLES, assert_merges_exactly, batch, network, randomly_tuned

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
TOKENS = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def of(tensors: dict[str, Tensor], site: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"graft/{site}/"): t for name, t in tensors.items() if name.startswith(f"graft/{site}/")}


def bottleneck(t: dict[str, Tensor], x: Tensor, activation: Any = F.gelu) -> Tensor:
    """W_up act(W_down x + b) + b."""
    hidden: Tensor = activation(x @ t["down.weight"].T + t["down.bias"])
    return hidden @ t["up.weight"].T + t["up.bias"]


# --- after a branch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_houlsby_stands_between_each_branch_and_its_skip(style: str) -> None:
    vit, _, tensors = randomly_tuned(AdapterHoulsby(bottleneck=3), style)
    plain: Any = network(style).blocks[0]
    y = plain.ls1(plain.attn(plain.norm1(TOKENS)))
    x = TOKENS + y + bottleneck(of(tensors, "blocks.0.ls1"), y)
    y = plain.ls2(plain.mlp(plain.norm2(x)))
    expected = x + y + bottleneck(of(tensors, "blocks.0.ls2"), y)
    torch.testing.assert_close(vit.blocks[0](TOKENS), expected, **EXACT)


def test_pfeiffer_comes_after_the_mlp_only() -> None:
    vit, _, tensors = randomly_tuned(AdapterPfeiffer(bottleneck=3), "dinov2")
    plain: Any = network("dinov2").blocks[1]
    x = TOKENS + plain.ls1(plain.attn(plain.norm1(TOKENS)))
    y = plain.ls2(plain.mlp(plain.norm2(x)))
    expected = x + y + bottleneck(of(tensors, "blocks.1.ls2"), y, F.relu)
    torch.testing.assert_close(vit.blocks[1](TOKENS), expected, **EXACT)


def test_adapter_plus_reads_the_block_and_scales_each_channel() -> None:
    vit, _, tensors = randomly_tuned(AdapterPlus(bottleneck=3))
    own = of(tensors, "blocks.0")
    y = network().blocks[0](TOKENS)
    torch.testing.assert_close(vit.blocks[0](TOKENS), y + own["scale"] * bottleneck(own, y), **EXACT)


def test_an_adapter_starts_small_and_adds_nothing() -> None:
    tensors = AdapterHoulsby(bottleneck=16).plan(vit := network(), NoProbe()).carry_out(vit).tensors
    for name, tensor in tensors.items():
        assert (0 < tensor.abs().max().item() <= 0.02) == name.endswith("down.weight"), name


@pytest.mark.parametrize("style", STYLES)
def test_the_norms_may_train_too(style: str) -> None:
    vit = network(style)
    norms = {
        f"{n}.{leaf}" for n, m in vit.named_modules() if isinstance(m, nn.LayerNorm) for leaf in ("weight", "bias")
    }
    assert AdapterHoulsby(norms=True).plan(vit, NoProbe()).tune == norms
    assert not AdapterHoulsby().plan(vit, NoProbe()).tune


def test_an_image_may_go_without_adapter_in_training_only() -> None:
    vit, _, _ = randomly_tuned(AdapterPlus(bottleneck=3, drop_path=0.5))
    same = TOKENS[:1].expand(32, -1, -1)
    torch.manual_seed(0)
    trained = vit.train().blocks[0](same)
    assert len(trained[:, 0, 0].unique()) == 2
    assert torch.equal(vit.eval().blocks[0](same), vit.blocks[0](same))


# --- ahead of a layer ------------------------------------------------------------------------------------------------


def test_rep_adapter_is_a_dense_and_a_grouped_convolution_of_one_pixel() -> None:
    """The authors write it with Conv1d over tokens."""
    vit, _, tensors = randomly_tuned(RepAdapter(r=4, groups=2, scale=0.5))
    own = of(tensors, "blocks.0.attn.qkv")
    kernel = own["up"].transpose(1, 2).reshape(32, 2, 1)  # (channels out, channels in of its group, 1)
    hidden = F.conv1d(TOKENS.transpose(1, 2), own["down.weight"][..., None], own["down.bias"])
    change = F.conv1d(hidden, kernel, own["bias"], groups=2).transpose(1, 2)
    expected = network().get_submodule("blocks.0.attn.qkv")(TOKENS + 0.5 * change)
    torch.testing.assert_close(vit.blocks[0].attn.qkv(TOKENS), expected, **EXACT)


def test_arc_shares_one_projection_for_attention_and_one_for_the_mlp() -> None:
    vit, _, tensors = randomly_tuned(ARC(r=5))
    for i in (0, 1):
        for branch, layer in (("attention", "attn.qkv"), ("mlp", "mlp.fc1")):
            own, shared = of(tensors, f"blocks.{i}.{layer}"), tensors[f"shared/{branch}/weight"]
            changed = TOKENS + TOKENS @ shared @ torch.diag(own["scale"]) @ shared.T + own["bias"]
            expected = network().get_submodule(f"blocks.{i}.{layer}")(changed)
            torch.testing.assert_close(vit.get_submodule(f"blocks.{i}.{layer}")(TOKENS), expected, **EXACT)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", [RepAdapter(r=4, groups=4, scale=2.0), ARC(r=3), RLRR()], ids=str)
def test_what_is_linear_folds_into_the_layer(method: Method, style: str) -> None:
    assert_merges_exactly(method, style)


def test_it_folds_from_training_mode_and_leaves_the_mode_alone() -> None:
    vit, tuned, _ = randomly_tuned(RepAdapter(r=4, dropout=0.5))
    x = batch()[0]
    unmerged = vit(x)
    vit.train()
    tuned.merge()
    assert tuned.grafts[0].training
    torch.testing.assert_close(vit.eval()(x), unmerged, **EXACT)


def test_without_a_bias_to_take_the_shift_it_stays() -> None:
    vit: Any = network()
    vit.blocks[0].attn.qkv.bias = None
    tuned = ARC(r=2).plan(vit, NoProbe()).carry_out(vit)
    assert not tuned.merge()
    assert type(vit.blocks[0].attn.qkv).__name__ == "Recomposed"
    assert type(vit.blocks[1].attn.qkv) is nn.Linear


# --- within a layer --------------------------------------------------------------------------------------------------


def test_rlrr_adds_every_matrix_rescaled_by_rows_and_columns() -> None:
    """Query, key and value by columns of their own, as in the authors' three matrices."""
    vit, _, tensors = randomly_tuned(RLRR())
    own, base = of(tensors, "blocks.0.attn.qkv"), network().get_submodule("blocks.0.attn.qkv")
    found = vit.blocks[0].attn.qkv(TOKENS).chunk(3, -1)
    weights, biases = base.get_parameter("weight").chunk(3), base.get_parameter("bias").chunk(3)
    for i, shift in enumerate(own["shift"].chunk(3)):
        weight = weights[i] + weights[i] * own["column"][i] * own["row"][i]
        torch.testing.assert_close(found[i], TOKENS @ weight.T + biases[i] + shift, **EXACT)


@pytest.mark.parametrize("style", STYLES)
def test_rlrr_is_everywhere_but_in_embeddings_and_the_first_norm_of_clip(style: str) -> None:
    vit = network(style)
    layers = {n for n, m in vit.named_modules() if isinstance(m, nn.Linear | nn.LayerNorm | nn.Conv2d)}
    assert RLRR().plan(vit, NoProbe()).grafts.keys() == layers - {"norm_pre"}


# --- beside a branch -------------------------------------------------------------------------------------------------


def authors_bypass(t: dict[str, Tensor], x: Tensor) -> Tensor:
    """The patches as one image of 4 x 4, the class token as an image of one pixel, padded like the other."""

    def quick(y: Tensor) -> Tensor:
        return y * torch.sigmoid(1.702 * y)

    down = quick(x @ t["down.weight"].T + t["down.bias"])
    images = (down[:, 1:].reshape(len(x), 4, 4, -1), down[:, :1].reshape(len(x), 1, 1, -1))
    patches, alone = (
        F.conv2d(i.permute(0, 3, 1, 2), t["kernel"], t["bias"], padding=1).permute(0, 2, 3, 1).flatten(1, 2)
        for i in images
    )
    return quick(torch.cat([alone, patches], 1)) @ t["up.weight"].T + t["up.bias"]


@pytest.mark.parametrize("style", STYLES)
def test_convpass_stands_beside_both_branches(style: str) -> None:
    vit, _, tensors = randomly_tuned(Convpass(r=3, scale=0.1), style)
    own = of(tensors, "blocks.0")
    attention, mlp = (
        {n.removeprefix(f"{branch}."): t for n, t in own.items() if n.startswith(f"{branch}.")}
        for branch in ("attention", "mlp")
    )
    plain: Any = network(style).blocks[0]
    y = plain.norm1(TOKENS)
    x = TOKENS + plain.ls1(plain.attn(y)) + 0.1 * authors_bypass(attention, y)
    y = plain.norm2(x)
    expected = x + plain.ls2(plain.mlp(y)) + 0.1 * authors_bypass(mlp, y)
    torch.testing.assert_close(vit.blocks[0](TOKENS), expected, **EXACT)


def test_every_token_that_is_no_patch_goes_alone() -> None:
    """Registers, as in DINOv2: changing one changes no patch's bypass."""
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415

    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0, reg_tokens=2
    ).double()
    tuned = Convpass(r=3).plan(vit, NoProbe()).carry_out(vit)
    with torch.no_grad():
        for tensor in tuned.tensors.values():
            tensor.normal_()
    bypass: Any = tuned.grafts[0].get_submodule("mlp")
    x = torch.randn(1, 3 + 16, 32, dtype=torch.float64)
    other = x.clone()
    other[:, 1] += 1
    moved = (bypass.eval()(x, 3, 4) != bypass(other, 3, 4)).any(2)[0]
    assert moved.nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize(("conv", "identity"), [("identity", True), ("xavier", False)])
def test_the_kernel_starts_as_asked(conv: Any, identity: bool) -> None:  # noqa: FBT001
    tensors = Convpass(r=3, conv=conv).plan(vit := network(), NoProbe()).carry_out(vit).tensors
    kernel = tensors["graft/blocks.0/mlp.kernel"]
    assert torch.equal(kernel[:, :, 1, 1], torch.eye(3, dtype=kernel.dtype)) == identity
    assert (kernel[:, :, 0, 0].abs().max() == 0) == identity


def test_convpass_refuses_blocks_that_add_up_otherwise() -> None:
    vit: Any = network()
    vit.blocks[0] = nn.Sequential()
    with pytest.raises(PluginError, match="supports timm's plain Block"):
        Convpass().plan(vit, NoProbe()).carry_out(vit)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (AdapterHoulsby, {"bottleneck": 0}, "bottleneck must be at least 1, got 0"),
        (AdapterPfeiffer, {"bottleneck": 0}, "bottleneck must be at least 1, got 0"),
        (AdapterPlus, {"bottleneck": 0}, "bottleneck must be at least 1, got 0"),
        (AdapterPlus, {"drop_path": 1.0}, "drop_path must be below 1, got 1"),
        (RepAdapter, {"r": 3}, r"rep_adapter: r must be a multiple of groups \(2\), got 3"),
        (RepAdapter, {"groups": 0}, "groups must be at least 1, got 0"),
        (RepAdapter, {"dropout": -0.1}, "dropout"),
        (ARC, {"r": 0}, "r must be at least 1, got 0"),
        (ARC, {"dropout": 1.0}, "dropout"),
        (Convpass, {"r": 0}, "r must be at least 1, got 0"),
        (Convpass, {"dropout": 1.0}, "dropout"),
        (Convpass, {"scale": 0.0}, "convpass: scale must not be 0"),
        (RepAdapter, {"scale": float("inf")}, "rep_adapter: scale must be a finite number, got inf"),
    ],
)
def test_what_cannot_be_is_refused(kind: type[Method], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        kind(**fields)


def test_groups_must_divide_the_width() -> None:
    with pytest.raises(RequestError, match="rep_adapter: groups must divide the width 32, got 3"):
        RepAdapter(r=3, groups=3).plan(network(), NoProbe())
