"""PEANuT: a small neural network of the weight makes the change (Zhong et al., 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods._hub import LowRank
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class PEANuT(LowRank):
    """W' = W + f(W), f a network with bottleneck r, `depth` pairs of hidden layers and relu; zero at the start."""

    kind: ClassVar[str] = "PEANUT"

    depth: int = 0

    def options(self) -> Sizes:
        """Bottleneck and depth."""
        return {"r": self.r, "depth": self.depth}

    def trained(self, rows: int, columns: int) -> int:
        """Into the bottleneck, through it and out of it."""
        return 2 * self.r * (rows + self.depth * self.r)


plugin = PEANuT
