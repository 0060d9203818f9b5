"""HRA: r Householder reflections of a layer's inputs (Yuan et al., NeurIPS 2024)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._hub import LowRankMethod


@checked
class HRA(LowRankMethod):
    """y = W H1 ... Hr x + b, H = 1 - 2 u u' / |u|^2; vectors start in equal pairs, whose reflections cancel."""

    kind: ClassVar[str] = "HRA"

    def trained(self, rows: int, columns: int) -> int:
        """Return one vector per reflection."""
        return self.r * columns

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return the even numbers: an odd number of reflections is never the identity."""
        return range(2, min(map(min, self.shapes(vit))) + 1, 2)


plugin = HRA
