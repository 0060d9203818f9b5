"""GraLoRA: a low-rank change for each cell of a grid over the weight (Jung et al., NeurIPS 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._hub import LowRank, common
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class GraLoRA(LowRank):
    """The weight in `cells` x `cells` parts, each with a change of rank r / cells at scale alpha / r; B zero first."""

    kind: ClassVar[str] = "GRALORA"

    alpha: int = 16
    cells: int = 2

    def options(self) -> Sizes:
        """Rank, scale and grid."""
        return {"r": self.r, "alpha": self.alpha, "gralora_k": self.cells}

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Multiples of `cells`. Raises RequestError where it does not divide every width."""
        if (width := common(self.shapes(vit))) % self.cells:
            raise RequestError(f"gralora: cells = {self.cells} will not do for these projections: it divides {width}.")
        return range(self.cells, width + 1, self.cells)


plugin = GraLoRA
