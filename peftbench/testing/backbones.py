"""check_backbone: a vision transformer of timm that builds on the meta device and loads its own file only."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from peftbench.core.contract import Backbone
from peftbench.errors import WeightsError
from peftbench.models.backbone import Network
from peftbench.models.top_k import backbone_size
from peftbench.testing.findings import Broken, Finding, Rule, Skipped, listed, require, run_rules


def it_builds_on_the_meta_device(backbone: Backbone) -> str:
    """Under torch.device("meta") it builds a network of timm without a head whose tensors take no memory."""
    with torch.device("meta"):
        vit = backbone.network(None)
    known = isinstance(vit, VisionTransformer | Eva)
    require(known, f"network() must build timm's VisionTransformer or Eva, got {type(vit).__name__}.")
    real = [name for name, tensor in vit.state_dict().items() if tensor.device.type != "meta"]
    require(not real, f"Under torch.device('meta'), {listed(real)} must not take memory.")
    require(isinstance(vit.head, torch.nn.Identity), "network() must have no head; build it with num_classes=0.")
    return f"{backbone_size(vit):,} weights."


def it_gives_one_row_of_features_an_image(backbone: Backbone) -> str:
    """(B, 3, size, size) -> (B, width), at its default image size and at twice that."""
    size = backbone.preprocessing(None).size
    for asked in (None, 2 * size):
        side = backbone.preprocessing(asked).size
        require(side == (asked or size), f"preprocessing({asked}) must give that size, got {side} px.")
        with torch.device("meta"):
            vit = backbone.network(asked)
            shape = tuple(vit(torch.empty(2, 3, side, side)).shape)
        require(
            shape == (2, vit.num_features),
            f"At {side} px, features must have the shape {(2, vit.num_features)}, got {shape}.",
        )
    return f"{size} px and {2 * size} px."


def the_card_is_complete(backbone: Backbone) -> str:
    """The card has title, source and licence; mean and standard deviation are those of pixels in 0..1."""
    card, scale = backbone.card, backbone.preprocessing(None)
    empty = [name for name in ("title", "source", "licence") if not getattr(card, name).strip()]
    require(not empty, f"The card must have a {listed(empty)}.")
    inside = all(0 <= m <= 1 for m in scale.mean) and all(0 < s <= 1 for s in scale.std)
    require(inside, f"mean and std must lie in 0..1, got {scale.mean} and {scale.std}.")
    return f"{card.title}; {card.licence}"


def weights_of_another_network_are_refused(backbone: Backbone) -> str:
    """Loading a file that lacks tensors, or a pickle, raises WeightsError."""
    vit = _empty(backbone)
    with TemporaryDirectory() as folder:
        lacking, pickled = Path(folder) / "lacking.safetensors", Path(folder) / "pickled.pt"
        save_file({"cls_token": torch.zeros(1, 1, 4)}, lacking)
        pickled.write_bytes(b"\x80\x04cos\nsystem\n.")
        for file in (lacking, pickled):
            try:
                backbone.load(vit, file)
            except WeightsError:
                continue
            raise Broken(f"load() must raise WeightsError for the file {file.name}.")
    return "A file that lacks tensors and a pickle raise WeightsError."


def its_weights_fill_it(backbone: Backbone) -> str:
    """Its file sets every tensor to finite numbers."""
    try:
        file = backbone.weights(None)
    except WeightsError as error:
        raise Skipped(str(error)) from None
    vit = _empty(backbone)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.fill_(float("nan"))
    backbone.load(vit, file)
    unset = [name for name, parameter in vit.named_parameters() if not parameter.isfinite().all()]
    require(not unset, f"Its file must set {listed(unset)} to finite numbers.")
    return f"{file.name}: {file.stat().st_size:,} bytes."


def _empty(backbone: Backbone) -> Network:
    with torch.device("meta"):
        vit = backbone.network(None)
    return vit.to_empty(device="cpu")


RULES: tuple[Rule[Backbone], ...] = (
    it_builds_on_the_meta_device,
    it_gives_one_row_of_features_an_image,
    the_card_is_complete,
    weights_of_another_network_are_refused,
    its_weights_fill_it,
)


def check_backbone(backbone: Backbone) -> list[Finding]:
    """Return every rule's finding; without the weights on this machine, that rule is skipped with how to get them."""
    return list(run_rules(RULES, backbone))
