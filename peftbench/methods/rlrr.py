"""RLRR: every matrix plus its own rescaling by rows and columns (Dong et al., CVPR 2024)."""

from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import checked
from peftbench.methods._sites import blocks, last_norm
from peftbench.methods.ssf import ScaleShift
from peftbench.models.method import Method
from peftbench.models.plan import Graft, Plan, Probe
from peftbench.models.tensor_names import PROJECTIONS


class Rescaled(Graft):
    """(W + W * r c^T) x + b + t; query, key and value each have their own column scale."""

    def __init__(self, base: nn.Module, parts: int) -> None:
        """`parts`: how many matrices are stacked in W along the outputs."""
        super().__init__(base)
        outputs, inputs = base.get_parameter("weight").shape
        self.column = nn.Parameter(torch.empty(parts, 1, inputs))
        self.row = nn.Parameter(torch.empty(parts, outputs // parts, 1))
        self.shift = nn.Parameter(torch.zeros(outputs))
        for scale, fan_in in ((self.column, inputs), (self.row, 1)):
            nn.init.uniform_(scale, -((6 / fan_in) ** 0.5), (6 / fan_in) ** 0.5)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return the inputs of each part plus twice the outputs."""
        outputs, inputs = base.get_parameter("weight").shape
        return int(sizes["parts"]) * inputs + 2 * outputs

    def weight(self) -> Tensor:
        """Return the rescaled weight (out, in)."""
        weight = self.base.get_parameter("weight")
        return weight + weight * (self.row * self.column).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        bias: Any = self.base.bias
        return F.linear(x, self.weight(), self.shift if bias is None else bias + self.shift)

    @torch.no_grad()
    def merged(self) -> nn.Module | None:
        """Return the layer with both changes; None if it has no bias to take the shift."""
        if self.base.bias is None:
            return None
        layer = deepcopy(self.base)
        layer.get_parameter("weight").copy_(self.weight())
        layer.get_parameter("bias").add_(self.shift)
        return layer


@checked
class RLRR(Method):
    """W <- W + diag(r) W diag(c) and b <- b + t in every matrix of every block; SSF after norms and patch embedding."""

    identity: ClassVar[bool] = False  # r, c and SSF's parameters start random

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every matrix, the norms of the blocks, the final norm and the patch convolution."""
        matrices = {f"{block}.{layer}": layer for block in blocks(vit) for layer in PROJECTIONS.values()}
        norms = [f"{block}.{norm}" for block in blocks(vit) for norm in ("norm1", "norm2")]
        return Plan(
            grafts={site: (Rescaled, {"parts": 3 if layer == "attn.qkv" else 1}) for site, layer in matrices.items()}
            | {site: (ScaleShift, {}) for site in (*norms, *last_norm(vit), "patch_embed.proj")}
        )


plugin = RLRR
