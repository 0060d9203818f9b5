"""FacT in the tensor-train format: every square has a core of its own (Jie and Deng, AAAI 2023)."""

from typing import Any

from torch import Tensor, nn

from peftbench.core.fields import checked
from peftbench.methods._fact import FacT, Factored, Factors, sites, squares, uniform
from peftbench.methods._sites import width
from peftbench.models.plan import Plan, Probe, Sizes


class OwnCores(Factored):
    """A matrix with a trained core for each of its squares."""

    def __init__(self, base: nn.Module, r: int, scale: float, dropout: float, shared: Factors) -> None:
        super().__init__(base, scale, dropout, shared)
        self.core = nn.Parameter(uniform((*self.squares, r, r), (self.squares[0] * r) ** -0.5))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return r^2 for each square."""
        along = squares(base.get_parameter("weight"), len(sizes["shared"].down))
        return along[0] * along[1] * int(sizes["r"]) ** 2

    def cores(self) -> Tensor:
        """Return the cores, (squares along the inputs, along the outputs, r, r)."""
        return self.core


@checked
class FacTTT(FacT):
    """Each square changes by s U core V; U and V are shared by the whole network."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every matrix of every block."""
        size: Sizes = {**self.values(), "shared": "factors"}
        return Plan(
            shared={"factors": (Factors, {"width": width(vit), "r": self.r})},
            grafts=dict.fromkeys(sites(vit), (OwnCores, size)),
        )

    def formula(self, width: int, squares: int) -> int:
        """Return 2 D r + r^2 for each square."""
        return 2 * width * self.r + squares * self.r**2


plugin = FacTTT
