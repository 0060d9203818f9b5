"""SSF: a scale and a shift behind every operation (Lian et al., Scaling and Shifting Your Features, NeurIPS 2022)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftbench.errors import RequestError
from peftbench.methods._sites import PROJECTIONS, blocks, has, last_norm
from peftbench.models.method import Method
from peftbench.models.plan import Graft, Plan, Probe

WITHIN = {"norm1": "norm1", "norm2": "norm2", **PROJECTIONS}
AROUND = {"patch": "patch_embed.proj", "norm_pre": "norm_pre"}
LAST = "norm"  # wherever a network has it, behind its pooling, too; a few have none


class ScaleShift(Graft):
    """scale * base(x) + shift, channel by channel."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        channels = len(base.get_parameter("weight"))
        self.scale = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.shift = nn.Parameter(0.02 * torch.randn(channels))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """2 channels."""
        return 2 * len(base.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C), or (B, C, H, W) behind a convolution."""
        out: Tensor = self.base(x)
        shape = (-1, 1, 1) if isinstance(self.base, nn.Conv2d) else (-1,)
        return out * self.scale.view(shape) + self.shift.view(shape)

    def merged(self) -> nn.Module | None:
        """W' = diag(s) W and b' = s b + t.

        Without a bias there is no place for t, but that of the patch convolution (CLIP) has one: see `settle`.
        """
        if getattr(self.base, "bias", None) is None and not isinstance(self.base, nn.Conv2d):
            return None
        plain = deepcopy(self.base)
        with torch.no_grad():
            weight = plain.get_parameter("weight")
            weight.mul_(self.scale.view(-1, *[1] * (weight.dim() - 1)))
            if plain.bias is not None:
                plain.get_parameter("bias").mul_(self.scale).add_(self.shift)
        return plain

    def settle(self, vit: nn.Module) -> None:
        """Adds t to the position embedding of the patches, and of them only, where the convolution has no bias."""
        if self.base.bias is None:
            places = vit.get_parameter("pos_embed")  # (1, class token and patches, D)
            patches = int(getattr(vit.get_submodule("patch_embed"), "num_patches"))  # noqa: B009 - torch types it loosely
            with torch.no_grad():
                places[:, -patches:] += self.shift


@dataclass(frozen=True)
class SSF(Method):
    """y = s * f(x) + t; s and t start near 1 and 0 but random, so that step 0 is not the pretrained model."""

    identity: ClassVar[bool] = False

    sites: tuple[str, ...] = ("patch", "norm1", "qkv", "proj", "norm2", "fc1", "fc2", "norm")

    def __post_init__(self) -> None:
        known = [*AROUND, *WITHIN, LAST]
        if strange := [site for site in self.sites if site not in known] or ([] if self.sites else ["nothing"]):
            raise RequestError(
                f"ssf: sites = {strange[0]!r} will not do: there are {', '.join(known)}; join several with +."
            )
        if len(set(self.sites)) < len(self.sites):
            raise RequestError(f"ssf: sites = {'+'.join(self.sites)} will not do: each may stand there once.")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft behind every chosen operation."""
        inner = [f"{block}.{WITHIN[site]}" for block in blocks(vit) for site in self.sites if site in WITHIN]
        places = [*(AROUND[site] for site in self.sites if site in AROUND), *inner]
        if absent := [place for place in places if not has(vit, place)]:
            raise RequestError(f"ssf: this network has no {absent[0]}; leave it out of the sites.")
        last = last_norm(vit) if LAST in self.sites else []
        return Plan(grafts={place: (ScaleShift, {}) for place in (*places, *last)})


plugin = SSF
