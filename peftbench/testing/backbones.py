"""check_backbone: a bare vision transformer of timm, buildable without memory, filled from its own file only."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from peftbench.core.contract import Backbone
from peftbench.errors import WeightsError
from peftbench.testing.findings import Broken, Finding, Rule, Skipped, demand, judge


def it_builds_on_the_meta_device(backbone: Backbone) -> str:
    """A VisionTransformer without a head, of which no tensor takes memory."""
    with torch.device("meta"):
        vit = backbone.network(None)
    demand(isinstance(vit, VisionTransformer), f"It built a {type(vit).__name__}, not timm's VisionTransformer.")
    real = [name for name, tensor in vit.state_dict().items() if tensor.device.type != "meta"]
    demand(not real, f"Under torch.device('meta'), {real[0] if real else ''} takes memory.")
    demand(isinstance(vit.head, torch.nn.Identity), "It has a head of its own: build it with num_classes=0.")
    return f"{sum(p.numel() for p in vit.parameters()):,} weights."


def it_gives_one_row_of_features_an_image(backbone: Backbone) -> str:
    """(B, 3, size, size) -> (B, width), at its own size and at the double."""
    size = backbone.preprocessing(None).size
    for asked in (None, 2 * size):
        side = backbone.preprocessing(asked).size
        demand(side == (asked or size), f"Asked for {asked} pixels, its preprocessing makes {side}.")
        with torch.device("meta"):
            vit = backbone.network(asked)
            shape = tuple(vit(torch.empty(2, 3, side, side)).shape)
        demand(shape == (2, vit.num_features), f"At {side} pixels the features have the shape {shape}.")
    return f"{size} pixels, and {2 * size}."


def the_card_is_complete(backbone: Backbone) -> str:
    """Title, source and licence; a mean and a spread for pixels in 0..1."""
    card, told = backbone.card, backbone.preprocessing(None)
    empty = [name for name in ("title", "source", "licence") if not getattr(card, name).strip()]
    demand(not empty, f"The card leaves {', '.join(empty)} empty.")
    inside = all(0 <= m <= 1 for m in told.mean) and all(0 < s <= 1 for s in told.std)
    demand(inside, f"Mean {told.mean} and spread {told.std} are not those of pixels in 0..1.")
    return f"{card.title}; {card.licence}"


def weights_of_another_network_are_refused(backbone: Backbone) -> str:
    """A file that lacks tensors, and a pickled one, raise WeightsError."""
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
            raise Broken(f"It took the file {file.name}, which does not fit.")
    return "A file that lacks tensors and a pickled one are refused."


def its_weights_fill_it(backbone: Backbone) -> str:
    """Every tensor is set by its file, to finite numbers."""
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
    demand(not unset, f"Its file leaves {unset[0] if unset else ''} unset or not finite.")
    return f"{file.name}: {file.stat().st_size:,} bytes."


def _empty(backbone: Backbone) -> VisionTransformer:
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
    """Every rule's finding; its weights are skipped, with the way to get them, where they are not on this machine."""
    return list(judge(RULES, backbone))
