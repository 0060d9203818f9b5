"""GLoRA: low-rank changes of weight and bias, some of them by what is there (Chavan et al., 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._hub import LowRank
from peftbench.plan import Sizes


@dataclass(frozen=True)
class GLoRA(LowRank):
    """W' = W + W * A + B and b' = b + b * D + E + W C; A, B, C of rank r, D and E numbers; changes zero at first."""

    kind: ClassVar[str] = "GLORA"

    def refuse_misfit(self, vit: nn.Module) -> None:
        """It changes biases, too."""
        super().refuse_misfit(vit)
        names = dict(vit.named_parameters())
        if self.count(vit) and any(n.endswith("qkv.weight") and n[:-6] + "bias" not in names for n in names):
            raise RequestError("glora: this network's projections have no bias, and it needs one.")

    def options(self) -> Sizes:
        """The rank."""
        return {"r": self.r}

    def trained(self, rows: int, columns: int) -> int:
        """Two pairs of factors, a third one for the bias, two numbers."""
        return self.r * (2 * (rows + columns) + columns + 1) + 2


plugin = GLoRA
