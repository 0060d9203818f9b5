"""The paper's backbone: the image tower of CLIP ViT-B/16, without its projection.

Named ViT-B-16-quickgelu (`openai`) in open_clip: it was trained with the quick GELU, so GELU gives other outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import timm
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models.vision_transformer import VisionTransformer

from peftbench.backbones._shared import default_file, fill, find_weights, image_side
from peftbench.core.contract import BackboneCard, Preprocessing

NETWORK = "vit_base_patch16_clip_quickgelu_224"
SIDE, PATCH = 224, 16  # pixels
HUB = "timm/vit_base_patch16_clip_224.openai on the Hugging Face hub, file open_clip_model.safetensors"


@dataclass(frozen=True)
class ClipViTB16:
    """`clip_vit_b16`: 85,799,424 weights."""

    @property
    def card(self) -> BackboneCard:
        """Origin and licence of the weights."""
        return BackboneCard(
            title="CLIP ViT-B/16 (OpenAI), image tower without projection",
            source=f"pretrained by OpenAI on 400 million pairs of image and text; {HUB}",
            licence="MIT",
            notes=("Radford et al. 2021, Learning transferable visual models from natural language supervision",),
        )

    def preprocessing(self, image_size: int | None) -> Preprocessing:
        """Return CLIP's mean and standard deviation, bicubic, at 224 px or `image_size`."""
        side = image_side(image_size, None, SIDE, PATCH)
        return Preprocessing(side, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)

    def network(self, image_size: int | None) -> VisionTransformer:
        """Return the bare network with random weights."""
        side = image_side(image_size, None, SIDE, PATCH)
        return cast("VisionTransformer", timm.create_model(NETWORK, num_classes=0, img_size=side))

    def weights(self, given: Path | None) -> Path:
        """Return `given`, or the file in the user's data folder. Raises WeightsError."""
        return find_weights(given, default_file("clip_vit_b16"), f"Download them from {HUB}.")

    def load(self, vit: VisionTransformer, file: Path) -> None:
        """Load a file of open_clip's whole model or in timm's layout into `vit`. Raises WeightsError."""
        fill(vit, file)


plugin = ClipViTB16
