"""FacT in the Tucker format: every core is a mixture of the same r cores (Jie and Deng, AAAI 2023)."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.core.fields import checked
from peftbench.methods._fact import FacT, Factored, Factors, sites, uniform
from peftbench.methods._sites import width
from peftbench.models.plan import Plan, Probe, Sizes


class Tucker(Factors):
    """U and V, r cores (r, r, r) and for each of n squares the weights (r, n) that mix them."""

    def __init__(self, width: int, r: int, n: int) -> None:
        super().__init__(width, r)
        self.core = nn.Parameter(uniform((r, r, r), 3**0.5 / r))
        self.mixture = nn.Parameter(uniform((r, n), (6 / (r + n)) ** 0.5))

    def mixed(self, first: int, squares: tuple[int, int]) -> Tensor:
        """Return the cores of consecutive squares, (squares along the inputs, along the outputs, r, r)."""
        weights = self.mixture[:, first : first + squares[0] * squares[1]]
        mixed: Tensor = torch.einsum("rst,tn->nrs", self.core, weights).unflatten(0, squares)
        return mixed


class MixedCores(Factored):
    """A matrix whose squares are numbered from `first`; its cores are mixtures of the shared ones."""

    shared: Tucker

    def __init__(self, base: nn.Module, first: int, scale: float, dropout: float, shared: Tucker) -> None:
        super().__init__(base, scale, dropout, shared)
        self.first = first

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Return 0: all its parameters are shared."""
        return 0

    def cores(self) -> Tensor:
        """Return the cores, (squares along the inputs, along the outputs, r, r)."""
        return self.shared.mixed(self.first, self.squares)


@checked
class FacTTK(FacT):
    """Each square changes by s U (sum_t p_t core_t) V; all but the weights p is shared by the whole network."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every matrix of every block."""
        places = sites(vit)
        *starts, n = accumulate(places.values(), initial=0)
        size: Sizes = {"scale": self.scale, "dropout": self.dropout, "shared": "factors"}
        return Plan(
            shared={"factors": (Tucker, {"width": width(vit), "r": self.r, "n": n})},
            grafts={site: (MixedCores, {**size, "first": first}) for site, first in zip(places, starts, strict=True)},
        )

    def formula(self, width: int, squares: int) -> int:
        """Return 2 D r + n r + r^3 for n squares."""
        return (2 * width + squares) * self.r + self.r**3


plugin = FacTTK
