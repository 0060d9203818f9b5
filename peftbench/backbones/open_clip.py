"""The image tower of an open_clip model: `open_clip:ViT-B-16/laion2b_s34b_b88k`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import VisionTransformer

from peftbench.backbones._shared import fill, image_side, preprocessing, refuse_depth
from peftbench.core.contract import BackboneCard, HubFile, Preprocessing
from peftbench.errors import RequestError, UnknownNameError
from peftbench.models import hub
from peftbench.models.backbone import Network
from peftbench.storage.folders import weights_file

PLAIN = {
    "image_size",
    "patch_size",
    "width",
    "layers",
    "head_width",
    "mlp_ratio",
}  # of towers that timm can convert
FORM = "open_clip:ARCHITECTURE/TAG, e.g. open_clip:ViT-B-16-quickgelu/openai"


@dataclass(frozen=True)
class OpenCLIP:
    """An open_clip architecture and the tag of its weights, without text tower and projection."""

    argument: str  # ARCHITECTURE/TAG
    depth: int | None = None  # use only the first blocks
    img_size: int | None = None  # pixels

    def __post_init__(self) -> None:
        if self._name not in open_clip.list_models():
            raise UnknownNameError("open_clip architecture", self._name, _plain_towers())
        _refuse_other_towers(self._name)
        known = list_pretrained_tags_by_model(self._name)
        if self._tag not in known:
            raise UnknownNameError(f"tag of {self._name} ({FORM})", self._tag, known)
        if self._pretraining.get("quick_gelu", False) and not self._quick:
            raise RequestError(
                f"open_clip:{self.argument}: these weights need the quick GELU. Use {self._name}-quickgelu/{self._tag}."
            )
        refuse_depth(f"open_clip:{self.argument}", self.depth)

    @property
    def _name(self) -> str:
        return self.argument.partition("/")[0]

    @property
    def _tag(self) -> str:
        return self.argument.partition("/")[2]

    @property
    def _tower(self) -> dict[str, Any]:
        return dict(_config(self._name)["vision_cfg"])

    @property
    def _quick(self) -> bool:
        return bool(_config(self._name).get("quick_gelu", False))

    @property
    def _pretraining(self) -> dict[str, Any]:
        return dict(get_pretrained_cfg(self._name, self._tag))

    @property
    def card(self) -> BackboneCard:
        """Origin of the weights, from open_clip's configuration."""
        title = f"open_clip {self._name}, weights {self._tag}, image tower without projection"
        return BackboneCard(title, self._origin, "see the source", ())

    @property
    def _origin(self) -> str:
        return hub.describe(self.hub_file) if self.hub_file else str(self._pretraining["url"])

    def preprocessing(self, image_size: int | None) -> Preprocessing:
        """Return the preprocessing of its pretraining, at `image_size` pixels if given."""
        config = self._pretraining
        return preprocessing(self._side(image_size), config["mean"], config["std"], config["interpolation"])

    def network(self, image_size: int | None) -> VisionTransformer:
        """Return the bare network with random weights."""
        tower, side = self._tower, self._side(image_size)
        return VisionTransformer(
            img_size=side,
            patch_size=tower["patch_size"],
            embed_dim=tower["width"],
            depth=self.depth or tower["layers"],
            num_heads=tower["width"] // tower.get("head_width", 64),
            mlp_ratio=tower.get("mlp_ratio", 4.0),
            pre_norm=True,
            norm_layer=partial(LayerNorm, eps=1e-5),
            act_layer="quick_gelu" if self._quick else "gelu",
            num_classes=0,
        )

    def weights(self, given: Path | None) -> Path:
        """Return `given`, or the file in the user's data folder or in the hub's cache. Raises WeightsError."""
        name, default = f"open_clip:{self.argument}", weights_file(f"open_clip-{self.argument}")
        return hub.find_weights(given, name, default, self.hub_file)

    @property
    def hub_file(self) -> HubFile | None:
        """The file on the Hugging Face hub, from open_clip's configuration."""
        repository, _, name = str(self._pretraining.get("hf_hub", "")).rpartition("/")
        return HubFile(repository, name or "open_clip_model.safetensors") if repository else None

    def load(self, vit: Network, file: Path) -> list[str]:
        """Load a file of the whole model or in timm's layout into `vit`, strictly. Raises WeightsError."""
        return fill(vit, file, self.depth)

    def _side(self, asked: int | None) -> int:
        return image_side(asked, self.img_size, self._tower["image_size"], self._tower["patch_size"])


def _config(name: str) -> dict[str, Any]:
    return dict(open_clip.get_model_config(name) or {})


def _is_plain(name: str) -> bool:
    tower = _config(name)["vision_cfg"]
    return set(tower) <= PLAIN and isinstance(tower["layers"], int)


def _plain_towers() -> list[str]:
    return [name for name in open_clip.list_models() if _is_plain(name)]


def _refuse_other_towers(name: str) -> None:
    """Raise RequestError for a tower that is not a plain vision transformer, with its timm name if there is one."""
    inner = _config(name)["vision_cfg"].get("timm_model_name")
    if inner:
        raise RequestError(
            f"open_clip:{name}: its image tower is timm's {inner}. If that is a vision transformer, use timm:{inner}."
        )
    if not _is_plain(name):
        raise RequestError(
            f"open_clip:{name}: its image tower is not a plain vision transformer. "
            f"Use one of {', '.join(_plain_towers())}."
        )


plugin = OpenCLIP
