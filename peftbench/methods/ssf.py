"""SSF: a scale and a shift after every operation (Lian et al., Scaling and Shifting Your Features, NeurIPS 2022)."""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from peftbench.core.fields import checked
from peftbench.errors import RequestError
from peftbench.methods._fields import no_repeats
from peftbench.methods._sites import blocks, has, last_norm
from peftbench.models.method import Method
from peftbench.models.plan import Graft, Plan, Probe
from peftbench.models.tensor_names import PROJECTIONS

WITHIN = {"norm1": "norm1", "norm2": "norm2", **PROJECTIONS}
AROUND = {"patch": "patch_embed.proj", "norm_pre": "norm_pre"}
LAST = "norm"  # before or after the pooling, depending on the network; a few have none
Site = Literal["patch", "norm_pre", "norm1", "norm2", "qkv", "proj", "fc1", "fc2", "norm"]


class ScaleShift(Graft):
    """scale * base(x) + shift, one scale and one shift per channel."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        channels = len(base.get_parameter("weight"))
        self.scale = nn.Parameter(1 + 0.02 * torch.randn(channels))
        self.shift = nn.Parameter(0.02 * torch.randn(channels))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Return 2 channels."""
        return 2 * len(base.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C), or (B, C, H, W) after a convolution."""
        out: Tensor = self.base(x)
        shape = (-1, 1, 1) if isinstance(self.base, nn.Conv2d) else (-1,)
        return out * self.scale.view(shape) + self.shift.view(shape)

    def merged(self) -> nn.Module | None:
        """Return a layer with W' = diag(s) W and b' = s b + t.

        None if there is no bias to take t, except for the patch convolution (CLIP): see `after_merge`.
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

    def after_merge(self, vit: nn.Module) -> None:
        """Add t to the position embedding of the patches (not of other tokens) if the convolution has no bias."""
        if self.base.bias is None:
            places = vit.get_parameter("pos_embed")  # (1, class token and patches, D)
            patches = int(getattr(vit.get_submodule("patch_embed"), "num_patches"))  # noqa: B009 - torch types it loosely
            with torch.no_grad():
                places[:, -patches:] += self.shift


@checked
class SSF(Method):
    """y = s * f(x) + t; s and t start random near 1 and 0, so step 0 is not the pretrained network."""

    identity: ClassVar[bool] = False

    sites: Annotated[tuple[Site, ...], Field(min_length=1), AfterValidator(no_repeats)] = (
        "patch",
        "norm1",
        "qkv",
        "proj",
        "norm2",
        "fc1",
        "fc2",
        "norm",
    )

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every chosen operation."""
        inner = [f"{block}.{WITHIN[site]}" for block in blocks(vit) for site in self.sites if site in WITHIN]
        places = [*(AROUND[site] for site in self.sites if site in AROUND), *inner]
        if absent := [place for place in places if not has(vit, place)]:
            raise RequestError(f"ssf: this network has no {absent[0]}; remove it from sites.")
        last = last_norm(vit) if LAST in self.sites else []
        return Plan(grafts={place: (ScaleShift, {}) for place in (*places, *last)})


plugin = SSF
