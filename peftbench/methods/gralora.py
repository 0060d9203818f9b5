"""GraLoRA: a low-rank update for each block of a grid over the weight (Jung et al., NeurIPS 2025)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from peftbench.core.fields import AtLeast1, checked
from peftbench.errors import RequestError
from peftbench.methods._fields import Size
from peftbench.methods._hub import LowRankMethod, common_divisor
from peftbench.models.plan import Sizes


@checked
class GraLoRA(LowRankMethod):
    """The weight as `cells` x `cells` blocks with updates of rank r / cells each, at scale alpha / r; B starts at 0."""

    kind: ClassVar[str] = "GRALORA"

    alpha: AtLeast1 = 16
    cells: Size = 2

    def options(self) -> Sizes:
        """Return rank, scale and grid."""
        return {"r": self.r, "alpha": self.alpha, "gralora_k": self.cells}

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return the multiples of `cells`. Raises RequestError if it does not divide every width."""
        if (width := common_divisor(self.shapes(vit))) % self.cells:
            raise RequestError(f"gralora: cells must divide {width} for these projections, got {self.cells}.")
        return range(self.cells, width + 1, self.cells)


plugin = GraLoRA
