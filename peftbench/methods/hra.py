"""HRA: the inputs of a layer mirrored r times (Yuan et al., NeurIPS 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.methods._hub import LowRank


@dataclass(frozen=True)
class HRA(LowRank):
    """y = W H1 ... Hr x + b, H = 1 - 2 u u' / |u|^2; vectors start in equal pairs, whose mirrors cancel."""

    kind: ClassVar[str] = "HRA"

    def trained(self, rows: int, columns: int) -> int:
        """One vector a mirror."""
        return self.r * columns

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Even numbers: an odd one has no start that changes nothing."""
        return range(2, min(map(min, self.shapes(vit))) + 1, 2)


plugin = HRA
