"""FacT in the tensor-train format: every square has a core of its own (Jie and Deng, AAAI 2023)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from peftbench.methods._fact import FacT, Factored, Factors, sites, squares, uniform
from peftbench.methods._sites import width
from peftbench.models.plan import Plan, Probe, Sizes


class OwnCores(Factored):
    """Cores that train as they are."""

    def __init__(self, base: nn.Module, r: int, scale: float, dropout: float, shared: Factors) -> None:
        super().__init__(base, scale, dropout, shared)
        self.core = nn.Parameter(uniform((*self.squares, r, r), (self.squares[0] * r) ** -0.5))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """r^2 for each square."""
        along = squares(base, len(sizes["shared"].down))
        return along[0] * along[1] * int(sizes["r"]) ** 2

    def cores(self) -> Tensor:
        """(squares along the inputs, along the outputs, r, r)."""
        return self.core


@dataclass(frozen=True)
class FacTTT(FacT):
    """Each square changes by s U core V, U and V shared by the whole network."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around every matrix of every block."""
        size: Sizes = {**self.values(), "shared": "factors"}
        return Plan(
            shared={"factors": (Factors, {"width": width(vit), "r": self.r})},
            grafts=dict.fromkeys(sites(vit), (OwnCores, size)),
        )

    def formula(self, width: int, squares: int) -> int:
        """2 D r + r^2 for each square."""
        return 2 * width * self.r + squares * self.r**2


plugin = FacTTT
