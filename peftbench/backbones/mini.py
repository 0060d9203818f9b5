"""The built-in backbone: a small vision transformer whose weights ship with the package.

With it everything runs without a download. Its weights were made by `tools/distil.py`.
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
    """Return the network with random weights for images of `side` px: 2.7 M weights, 6 blocks of width 192."""
    return VisionTransformer(
        img_size=side, patch_size=PATCH, embed_dim=192, depth=6, num_heads=3, mlp_ratio=4, num_classes=0
    )


@dataclass(frozen=True)
class Mini:
    """`mini`: for demonstration, tests and research; not state of the art."""

    @property
    def card(self) -> BackboneCard:
        """Origin and licence of the weights."""
        return BackboneCard(
            title="mini: ViT, 64 px, patch 8, width 192, 6 blocks",
            source=(
                "distilled by peftbench (tools/distil.py) from a ViT-S/14 derived from DINOv2 (Apache-2.0), "
                "on 20,200 natural images of 64 px; the weights ship with the package"
            ),
            licence="Apache-2.0 code; the images were for research use only, and so are the weights",
            notes=("for demonstration, testing and research; not the backbone of any paper",),
        )

    def preprocessing(self, image_size: int | None) -> Preprocessing:
        """Return ImageNet's mean and standard deviation, at 64 px or `image_size`."""
        side = image_side(image_size, None, SIDE, PATCH)
        return Preprocessing(side, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    def network(self, image_size: int | None) -> VisionTransformer:
        """Return the bare network with random weights."""
        return network(image_side(image_size, None, SIDE, PATCH))

    def weights(self, given: Path | None) -> Path:
        """Return `given`, or the file that ships with the package."""
        return find_weights(given, FILE, "The installation is incomplete: reinstall peftbench.")

    def load(self, vit: VisionTransformer, file: Path) -> None:
        """Load `file` into `vit`, strictly. Raises WeightsError."""
        fill(vit, file)


plugin = Mini
