"""ARC: adapters re-composed from two projections that all blocks share (Dong et al., NeurIPS 2023)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftbench.errors import RequestError
from peftbench.methods._adapters import Ahead
from peftbench.methods._sites import blocks, width
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe, Shared, Sizes

BRANCHES = {"attention": "attn.qkv", "mlp": "mlp.fc1"}


class Projection(Shared):
    """P (width, r): down as it stands, up transposed."""

    def __init__(self, width: int, r: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, r)))


class Recomposed(Ahead):
    """x + (x P diag(c)) P^T + b ahead of a Linear layer; c and b are the block's own and start at zero."""

    def __init__(self, base: nn.Module, r: int, dropout: float, shared: Projection) -> None:
        super().__init__(base)
        self.shared = shared
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.zeros(r))
        self.bias = nn.Parameter(torch.zeros(len(shared.weight)))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """r + width."""
        return int(sizes["r"]) + base.get_parameter("weight").shape[1]

    def change(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., in)."""
        hidden = self.dropout(x @ self.shared.weight * self.scale)
        out: Tensor = hidden @ self.shared.weight.T + self.bias
        return out


@dataclass(frozen=True)
class ARC(Stepped):
    """One projection for what all attentions read, one for what all MLPs read; each block scales what is between."""

    knob: ClassVar[str | None] = "r"

    r: int = 50
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.r < 1:
            raise RequestError(f"arc: r = {self.r} will not do: it is at least 1.")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"arc: dropout = {self.dropout} will not do: it lies in [0, 1).")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around the first layer of each branch."""
        size: Sizes = {"r": self.r, "dropout": self.dropout}
        return Plan(
            shared={branch: (Projection, {"width": width(vit), "r": self.r}) for branch in BRANCHES},
            grafts={
                f"{block}.{layer}": (Recomposed, {**size, "shared": branch})
                for block in blocks(vit)
                for branch, layer in BRANCHES.items()
            },
        )

    def most(self, vit: nn.Module) -> int:
        """The width."""
        return width(vit)


plugin = ARC
