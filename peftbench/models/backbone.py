"""Build the backbone that a specification names: `mini`, `timm:NAME[depth=8]`, `clip_vit_b16@random`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeAlias, cast

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from peftbench.core.contract import Backbone, Preprocessing
from peftbench.core.fields import build
from peftbench.core.registry import registry
from peftbench.core.syntax import Spec, parse
from peftbench.errors import RequestError
from peftbench.models.top_k import backbone_size
from peftbench.storage.files import sha256_file

Network: TypeAlias = VisionTransformer | Eva

FEW_TOKENS = 128  # patches; with more, storing the attention matrix costs more time than it saves

_known_sha256 = lru_cache(sha256_file)  # weights do not change while a study runs


@dataclass(frozen=True)
class Source:
    """A backbone as specified, and the source of its weights."""

    spec: Spec
    plugin: Backbone
    image_size: int | None
    file: Path | None  # None: random weights, or none needed

    @cached_property  # a preset builds its network to know the size of its patches
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of its pretraining, at the specified image size."""
        return self.plugin.preprocessing(self.image_size)

    @cached_property
    def network_digest(self) -> str:
        """What the id of a job must contain of the network besides the name of the backbone, usually ""."""
        return str(getattr(self.plugin, "network_digest", ""))

    def digest(self, seed: int) -> str:
        """Return what identifies its weights: the SHA-256 of the file, or `random:SEED`."""
        return _known_sha256(self.file) if self.file else f"random:{seed}"

    def blank(self) -> Network:
        """Return the network on the meta device: shapes without values."""
        with torch.device("meta"):
            return self._network()

    def build(self, seed: int) -> Network:
        """Return the network with its weights, in float32, on the CPU. Random weights are drawn from `seed`."""
        torch.manual_seed(seed)
        vit = self._network().float()
        if self.file:
            with registry("backbones").calling(self.spec.name):
                self.plugin.load(vit, self.file)
        return vit

    def _network(self) -> Network:
        with registry("backbones").calling(self.spec.name):
            return self.plugin.network(self.image_size)


def locate(text: str, image_size: int | None = None, weights: Path | None = None, *, blank: bool = False) -> Source:
    """Return the backbone that a specification names, with its weight file.

    With `blank`, no weights are searched for, which is enough for counting. Raises WeightsError, RequestError.
    """
    spec = parse(text)
    kind = registry("backbones").get(spec.name)
    if spec.argument is None and "argument" in getattr(kind, "__dataclass_fields__", {}):
        raise RequestError(
            f"Backbone {text!r} needs a model name: write {spec.name}:NAME, as `peftbench list backbones` shows."
        )
    values = dict(spec.fields) | ({"argument": spec.argument} if spec.argument is not None else {})
    plugin = cast("Backbone", build(kind, values, f"The backbone {spec.name}"))
    if weights is not None and spec.random:
        raise RequestError(
            f"--weights cannot be used with --backbone {text}: @random means random weights. Remove one of them."
        )
    with registry("backbones").calling(spec.name):
        file = None if blank or spec.random else plugin.weights(weights)
    return Source(spec, plugin, image_size, file)


@lru_cache
def parameter_count(text: str, image_size: int | None) -> int:
    """Return the number of parameters of a backbone, without its weights."""
    return backbone_size(locate(text, image_size, blank=True).blank())


def choose_attention(vit: Network, device: str, autocast: torch.dtype | None) -> None:
    """Replace torch's fused attention by separate operations where it is slow: bfloat16 on a CPU with few tokens.

    A training step then takes .65 (65 tokens, width 192) to .80 (width 384) of the time; the last bits of sums differ.
    """
    if device != "cpu" or autocast is None or vit.patch_embed.num_patches > FEW_TOKENS:
        return
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            vars(module)["fused_attn"] = False  # timm declares it final for scripting
