"""mini."""

from timm.models.vision_transformer import VisionTransformer

SIDE = 64


def network() -> VisionTransformer:
    return VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=192, depth=6, num_heads=3, mlp_ratio=4, num_classes=0
    )
