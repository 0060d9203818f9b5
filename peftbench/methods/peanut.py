"""PEANuT: a small neural network computes the update from the weight (Zhong et al., 2024)."""

from typing import Annotated, ClassVar

from pydantic import Field

from peftbench.core.fields import checked
from peftbench.methods._fields import LARGEST_SIZE
from peftbench.methods._hub import LowRankMethod
from peftbench.models.plan import Sizes


@checked
class PEANuT(LowRankMethod):
    """W' = W + f(W), f a network with bottleneck r, `depth` pairs of hidden layers and ReLU; f(W) starts at zero."""

    kind: ClassVar[str] = "PEANUT"

    depth: Annotated[int, Field(ge=0, le=LARGEST_SIZE)] = 0

    def options(self) -> Sizes:
        """Return bottleneck and depth."""
        return {"r": self.r, "depth": self.depth}

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of the first, the hidden and the last layers."""
        return 2 * self.r * (rows + self.depth * self.r)


plugin = PEANuT
