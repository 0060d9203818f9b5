"""The backbone that a TOML file describes: `clip_vit_b16`, `dinov2_s14[depth=8,img_size=112]`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import timm
import torch
from timm import layers
from timm.models import is_model_in_modules
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftbench.backbones._shared import create_network, fill, image_side, refuse_depth
from peftbench.core import presets
from peftbench.core.contract import BackboneCard, HubFile, Preprocessing
from peftbench.errors import CatalogueError
from peftbench.models.backbone import Network
from peftbench.models.hub import describe, find_preset_weights

BOTH = "both"  # pooling: the class token and the mean of the patches, one after the other
MODULES = ("vision_transformer", "deit")  # of timm.models, whose networks have the option fc_norm
CLASSES = ("mlp_layer", "norm_layer", "act_layer", "embed_norm_layer")  # options whose value may name a class of timm


class BothPooled(VisionTransformer):
    """A vision transformer whose features are the class token and the mean of the patches: twice its width."""

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:  # noqa: ARG002 - timm's signature
        """(B, tokens, D) -> (B, 2 D)."""
        return torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(dim=1)], dim=1)


@dataclass(frozen=True)
class Preset:
    """A backbone whose network, weights and preprocessing a TOML file states; `preset_class` makes a class for each."""

    preset: ClassVar[str]  # its name
    depth: int | None = None  # use only the first blocks
    img_size: int | None = None  # pixels

    def __post_init__(self) -> None:
        refuse_depth(self.preset, self.depth)

    @property
    def facts(self) -> presets.Preset:
        """The content of the file. Raises CatalogueError."""
        return presets.preset(self.preset)

    @property
    def hub_file(self) -> HubFile | None:
        """The file of weights on the Hugging Face hub, if they are there."""
        return self.facts.hub_file

    @property
    def network_digest(self) -> str:
        """What the ids of jobs must contain of the network besides its name."""
        return presets.network_digest(self.preset)

    @property
    def card(self) -> BackboneCard:
        """Origin and licence of the weights."""
        facts = self.facts
        place = [describe(facts.hub_file)] if facts.hub_file else [f"file {p}" for p in (facts.weights.path,) if p]
        source = "; ".join([*facts.pretraining, *place]) or "not stated"
        depth = f", first {self.depth} blocks" if self.depth else ""
        notes = (*facts.notes, *((facts.citation,) if facts.citation else ()))
        return BackboneCard(facts.title + depth, source, facts.licence, notes)

    def preprocessing(self, image_size: int | None) -> Preprocessing:
        """Return the preset's preprocessing, at `image_size` pixels if given."""
        return replace(self.facts.preprocessing, size=self._side(image_size))

    def network(self, image_size: int | None) -> Network:
        """Return the bare network with random weights. Raises CatalogueError."""
        return self._create(self._side(image_size))

    def timm_arguments(self, image_size: int | None) -> tuple[str, dict[str, Any]] | None:
        """Return what `timm.create_model` needs for the same network; None where the pooling is none of timm's."""
        return None if self.facts.pooling == BOTH else self._arguments(self._side(image_size))

    def weights(self, given: Path | None) -> Path:
        """Return `given`, or the preset's file: of the package, of this machine or of the hub's cache.

        Raises WeightsError.
        """
        return find_preset_weights(self.preset, given)

    def load(self, vit: Network, file: Path) -> list[str]:
        """Load `file` into `vit`, strictly except for blocks beyond `depth`. Raises WeightsError."""
        return fill(vit, file, self.depth, self.facts.weights.prefix)

    def _side(self, asked: int | None) -> int:
        with torch.device("meta"):
            shallow = replace(self, depth=1)._create(None)  # noqa: SLF001 - of this class
        patch = shallow.get_parameter("patch_embed.proj.weight").shape[-1]
        return image_side(asked, self.img_size, self.facts.input.size, patch)

    def _arguments(self, side: int | None) -> tuple[str, dict[str, Any]]:
        facts = self.facts
        options: dict[str, Any] = dict(facts.options) | ({"depth": self.depth} if self.depth else {})
        if facts.pooling == "avg" and is_model_in_modules(facts.architecture.partition(".")[0], MODULES):
            options.setdefault("fc_norm", False)  # the pretrained norm stays before the mean, so that weights fit
        pooling = "token" if facts.pooling == BOTH else facts.pooling
        return facts.architecture, {**options, "img_size": side or facts.input.size, "global_pool": pooling}

    def _create(self, side: int | None) -> Network:
        facts = self.facts
        architecture, arguments = self._arguments(side)
        options = {name: _option(name, value) for name, value in arguments.items()}
        try:
            vit = create_network(architecture, num_classes=0, **options)
        except Exception as error:
            raise self._unbuildable(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        if type(vit) not in {VisionTransformer, Eva}:
            raise self._unbuildable(f"it is a {type(vit).__name__}, not a VisionTransformer or an Eva network")
        network = cast("Network", vit)
        return _pool_both(network, self.preset) if facts.pooling == BOTH else network

    def _unbuildable(self, why: str) -> CatalogueError:
        name = self.facts.architecture
        return CatalogueError(f"Backbone {self.preset}: timm {timm.__version__} cannot build {name!r} ({why}).")


def _option(name: str, value: object) -> Any:  # noqa: ANN401 - an argument of timm
    """Return an option with the class of `timm.layers` that it names, such as SwiGLUPacked."""
    named = getattr(layers, value, None) if isinstance(value, str) and name in CLASSES else None
    return named if isinstance(named, type | partial) else value


def _pool_both(vit: Network, name: str) -> Network:
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None:
        raise CatalogueError(f'Backbone {name}: pooling = "both" needs a VisionTransformer with a class token.')
    vit.__class__ = BothPooled
    vit.num_features = 2 * vit.embed_dim
    return vit


def preset_class(name: str) -> type[Preset]:
    """Return the class of a preset's backbones; its fields are those that may stand in brackets."""
    return type("Preset", (Preset,), {"preset": name, "__doc__": presets.preset(name).title})
