"""DiffFit: train biases, norms and a scale of each branch (Xie et al., ICCV 2023)."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.core.fields import checked
from peftbench.methods._sites import blocks, norms
from peftbench.models.method import Method
from peftbench.models.plan import Graft, Plan, Probe
from peftbench.models.tensor_names import PROJECTIONS


class Gain(Graft):
    """g * base(x), with one g per channel, 1 at the start."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.gain = nn.Parameter(torch.ones(len(base.get_parameter("weight"))))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Return the number of channels."""
        return len(base.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = self.base(x) * self.gain
        return out

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return a layer with W' = diag(g) W and b' = g b."""
        layer = deepcopy(self.base)
        layer.get_parameter("weight").mul_(self.gain[:, None])
        if layer.bias is not None:
            layer.get_parameter("bias").mul_(self.gain)
        return layer


@checked
class DiffFit(Method):
    """x + g f(norm x) for both branches f of every block; g, all biases and the scales of all norms train."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Apply g to the last matrix of each branch, before the LayerScale that DINOv2 has."""
        scaled = set(norms(vit))
        trained = (n for n, _ in vit.named_parameters() if n.endswith("bias") or n.rpartition(".")[0] in scaled)
        sites = [f"{block}.{PROJECTIONS[last]}" for block in blocks(vit) for last in ("proj", "fc2")]
        return Plan(tune=frozenset(trained), grafts={site: (Gain, {}) for site in sites})


plugin = DiffFit
