"""RepAdapter: a linear bottleneck ahead of each branch that folds into the layer behind it (Luo et al., 2023)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftbench.errors import RequestError
from peftbench.methods._adapters import Ahead
from peftbench.methods._sites import blocks, width
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


class GroupedBottleneck(Ahead):
    """x + s (B (A x + a) + b) ahead of a Linear layer; B is block-diagonal in `groups` blocks and starts at zero."""

    def __init__(self, base: nn.Module, r: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        width = base.get_parameter("weight").shape[1]
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.down = nn.Linear(width, r)
        self.up = nn.Parameter(torch.zeros(groups, r // groups, width // groups))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """r width + r + r width / groups + width."""
        width, r = base.get_parameter("weight").shape[1], int(sizes["r"])
        return r * width + r + r * width // int(sizes["groups"]) + width

    def change(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., in)."""
        hidden = self.dropout(self.down(x)).unflatten(-1, (len(self.up), 1, -1))  # (..., groups, 1, r / groups)
        out: Tensor = (hidden @ self.up).flatten(-3) + self.bias
        return self.scale * out


@dataclass(frozen=True)
class RepAdapter(Method):
    """Between norm1 and attention and between norm2 and the MLP; without an activation, so that it folds away."""

    knob: ClassVar[str | None] = "r"

    r: int = 8
    groups: int = 2
    scale: float = 1.0  # s; the authors search it for each data set among 0.1, 0.5, 1, 5 and 10
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise RequestError(f"rep_adapter: groups = {self.groups} will not do: it is at least 1.")
        if self.r < 1 or self.r % self.groups:
            raise RequestError(f"rep_adapter: r = {self.r} will not do: it is a multiple of groups, {self.groups}.")
        if not math.isfinite(self.scale) or self.scale == 0:
            raise RequestError(f"rep_adapter: scale = {self.scale} will not do: it is a number other than 0.")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"rep_adapter: dropout = {self.dropout} will not do: it lies in [0, 1).")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around the first layer of each branch."""
        if width(vit) % self.groups:
            raise RequestError(f"rep_adapter: groups = {self.groups} does not divide the width, {width(vit)}.")
        sites = [f"{block}.{layer}" for block in blocks(vit) for layer in ("attn.qkv", "mlp.fc1")]
        return Plan(grafts={site: (GroupedBottleneck, self.values()) for site in sites})

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Multiples of `groups` up to the width."""
        return range(self.groups, width(vit) + 1, self.groups)


plugin = RepAdapter
