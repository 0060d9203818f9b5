"""The classifier on top: a backbone, and the head that every method of a study shares."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Head(nn.Module):
    """Class-token features (B, D) -> logits (B, classes).

    Drawn from its own seed, so every method starts from the same one.
    """

    def __init__(self, width: int, classes: int, kind: str, scale: float, seed: int) -> None:
        """`kind`: plain, l2 (features brought to length `scale`, the paper's) or batchnorm (AdaptFormer's)."""
        super().__init__()
        self.kind, self.scale = kind, scale
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if kind == "batchnorm" else nn.Identity()
        self.linear = nn.Linear(width, classes)
        draw = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.linear.weight, std=0.02, generator=draw)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """(B, D) -> (B, classes), in float32 or wider whatever the backbone computed in."""
        with torch.autocast(features.device.type, enabled=False):
            wide = features.to(self.linear.weight.dtype)
            wide = self.scale * F.normalize(wide, dim=1) if self.kind == "l2" else self.norm(wide)
            out: Tensor = self.linear(wide)
            return out


class Classifier(nn.Module):
    """A timm VisionTransformer without a head of its own, and ours."""

    def __init__(self, vit: nn.Module, head: Head) -> None:
        super().__init__()
        self.vit, self.head = vit, head

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """(B, 3, H, W) -> (B, classes)."""
        out: Tensor = self.head(self.vit(x))
        return out
