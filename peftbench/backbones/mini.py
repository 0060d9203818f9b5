"""The built-in backbone: a small vision transformer whose weights ship with the package.

It exists so that everything runs with nothing downloaded. `tools/distil.py` made its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer

from peftbench.backbones._shared import fill, find_weights, image_side
from peftbench.core.contract import BackboneCard, Preprocessing

SIDE, PATCH = 64, 8  # pixels
FILE = Path(__file__).with_name("mini.safetensors")


def network(side: int = SIDE) -> VisionTransformer:
    """The network with fresh random values, for images of `side` px: 2.7 M weights, 6 blocks of width 192."""
    return VisionTransformer(
        img_size=side, patch_size=PATCH, embed_dim=192, depth=6, num_heads=3, mlp_ratio=4, num_classes=0
    )


@dataclass(frozen=True)
class Mini:
    """`mini`: for demonstration, tests and research; no state of the art."""

    @property
    def card(self) -> BackboneCard:
        """Where it comes from and on what terms."""
        return BackboneCard(
            title="mini: ViT, 64 px, patch 8, width 192, 6 blocks",
            source=(
                "distilled by peftbench (tools/distil.py) from a ViT-S/14 derived from DINOv2 (Apache-2.0), "
                "on 20,200 natural images of 64 px; the weights ship with the package"
            ),
            licence="Apache-2.0 code; the images were for research use only, so the weights are for research, too",
            notes=("for demonstration, testing and research: not the backbone of any paper",),
        )

    def preprocessing(self, image_size: int | None) -> Preprocessing:
        """ImageNet's mean and spread, at 64 px or `image_size`."""
        side = image_side(image_size, None, SIDE, PATCH)
        return Preprocessing(side, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    def network(self, image_size: int | None) -> VisionTransformer:
        """The bare network with fresh random values."""
        return network(image_side(image_size, None, SIDE, PATCH))

    def weights(self, given: Path | None) -> Path:
        """The file beside this one, or `given`."""
        return find_weights(given, FILE, "The installation is incomplete; install peftbench again.")

    def load(self, vit: VisionTransformer, file: Path) -> None:
        """Fill `vit` from `file`, strictly. Raises WeightsError."""
        fill(vit, file)


plugin = Mini
