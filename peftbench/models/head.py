"""The classification head, the same for every method of a study, and the classifier of backbone and head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Head(nn.Module):
    """Map features (B, D) to logits (B, classes).

    It is drawn from its own seed, so every method starts from the same head.
    """

    def __init__(self, width: int, classes: int, kind: str, scale: float, seed: int) -> None:
        """`kind`: plain, l2 (features normalized to length `scale`, as in SH-PEFT) or batchnorm (as in AdaptFormer)."""
        super().__init__()
        self.kind, self.scale = kind, scale
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if kind == "batchnorm" else nn.Identity()
        self.linear = nn.Linear(width, classes)
        draw = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.linear.weight, std=0.02, generator=draw)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """(B, D) -> (B, classes), in the head's dtype (float32 or wider) under any autocast."""
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.linear(self.normalize(features))
            return out

    def normalize(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Return the inputs of the linear layer."""
        wide = features.to(self.linear.weight.dtype)
        out: Tensor = self.scale * F.normalize(wide, dim=1) if self.kind == "l2" else self.norm(wide)
        return out

    @torch.no_grad()
    def fit_norm(self, features: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """Set the statistics of a batchnorm head to those of all training features; return these normalized."""
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.train().momentum, momentum = 1.0, self.norm.momentum
            self.norm(features.to(self.linear.weight.dtype))
            self.norm.momentum = momentum
        return self.eval().normalize(features)


class Classifier(nn.Module):
    """A timm VisionTransformer without a head, followed by a `Head`."""

    def __init__(self, vit: nn.Module, head: Head) -> None:
        super().__init__()
        self.vit, self.head = vit, head

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """(B, 3, H, W) -> (B, classes)."""
        out: Tensor = self.head(self.vit(x))
        return out
