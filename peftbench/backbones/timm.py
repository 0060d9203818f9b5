"""Any vision transformer of timm: `timm:NAME[depth=8,img_size=112]`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import PretrainedCfg, get_pretrained_cfg
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import device

from peftbench.backbones._shared import create_network, fill, image_side, preprocessing, refuse_depth
from peftbench.core.contract import BackboneCard, HubFile, Preprocessing
from peftbench.errors import UnknownNameError
from peftbench.models import hub
from peftbench.models.backbone import Network
from peftbench.storage.folders import weights_file

KIND = "timm vision transformer"
MODULES = ("vision_transformer", "deit", "eva")  # of timm.models


@dataclass(frozen=True)
class Timm:
    """A timm network, pooled as in its pretraining (for example by its class token)."""

    argument: str  # timm's name, optionally with a dot and the tag of its weights
    depth: int | None = None  # use only the first blocks
    img_size: int | None = None  # pixels

    def __post_init__(self) -> None:
        known = _names(tagged="." in self.argument)
        if self.argument not in known:
            raise UnknownNameError(KIND, self.argument, known)
        refuse_depth(f"timm:{self.argument}", self.depth)

    @property
    def _config(self) -> PretrainedCfg:
        return get_pretrained_cfg(self.argument) or PretrainedCfg()

    @property
    def card(self) -> BackboneCard:
        """Origin and licence of the weights, from timm's configuration."""
        config = self._config
        return BackboneCard(
            title=self.argument if self.depth is None else f"{self.argument}, first {self.depth} blocks",
            source=_origin(config),
            licence=config.license or "unknown to timm",
            notes=tuple(config.notes or ()),
        )

    def preprocessing(self, image_size: int | None) -> Preprocessing:
        """Return the preprocessing of its pretraining, at `image_size` pixels if given."""
        config = self._config
        return preprocessing(self._side(image_size), config.mean, config.std, config.interpolation)

    def network(self, image_size: int | None) -> Network:
        """Return the bare network with random weights. Raises UnknownNameError for other classes of networks."""
        return self._create(self._side(image_size))

    def weights(self, given: Path | None) -> Path:
        """Return `given`, or the file in the user's data folder or in the hub's cache. Raises WeightsError."""
        return hub.find_weights(given, f"timm:{self.argument}", weights_file(f"timm-{self.argument}"), self.hub_file)

    def timm_arguments(self, image_size: int | None) -> tuple[str, dict[str, Any]]:
        """Return what `timm.create_model` needs for the same network."""
        depth = {"depth": self.depth} if self.depth else {}
        return self.argument, {**depth, "img_size": self._side(image_size)}

    @property
    def hub_file(self) -> HubFile | None:
        """The file on the Hugging Face hub, from timm's configuration."""
        return _hub_file(self._config)

    def load(self, vit: Network, file: Path) -> list[str]:
        """Load `file` into `vit`, strictly except for blocks beyond `depth`. Raises WeightsError."""
        return fill(vit, file, self.depth)

    def _side(self, asked: int | None) -> int:
        with device("meta"):
            shallow = replace(self, depth=1)._create(None)  # noqa: SLF001 - of this class
        patch = shallow.get_parameter("patch_embed.proj.weight").shape[-1]
        return image_side(asked, self.img_size, self._config.input_size[-1], patch)

    def _create(self, side: int | None) -> Network:
        vit = create_network(self.argument, num_classes=0, depth=self.depth, img_size=side)
        if type(vit) not in {VisionTransformer, Eva}:
            raise UnknownNameError(KIND, self.argument, _names(tagged=False) - {self.argument})
        return cast("Network", vit)


def _names(*, tagged: bool) -> frozenset[str]:
    lists = [timm.list_models(module=module, pretrained=tagged) for module in MODULES]
    return frozenset(str(name) for names in lists for name in names)


def _hub_file(config: PretrainedCfg) -> HubFile | None:
    return HubFile(config.hf_hub_id, config.hf_hub_filename or "model.safetensors") if config.hf_hub_id else None


def _origin(config: PretrainedCfg) -> str:
    """Return where to download the weights, as a phrase."""
    if file := _hub_file(config):
        return hub.describe(file)
    return str(config.url) or "their authors (timm lists no URL)"


plugin = Timm
