"""GLoRA: low-rank changes of weight and bias, some of them by what is there (Chavan et al., 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._hub import LowRank
from peftbench.methods._sites import PROJECTIONS, blocks
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class GLoRA(LowRank):
    """W' = W + W * A + B and b' = b + b * D + E + W C; A, B, C of rank r, D and E numbers; changes zero at first."""

    kind: ClassVar[str] = "GLORA"

    def refuse_misfit(self, vit: nn.Module) -> None:
        """It changes biases, too."""
        super().refuse_misfit(vit)
        sites = [f"{block}.{PROJECTIONS[site]}" for block in blocks(vit) for site in self.sites]
        names = {name for name, _ in vit.named_parameters()}
        if bare := [site for site in sites if f"{site}.bias" not in names]:
            raise RequestError(f"glora: {bare[0]} of this network has no bias, and it needs one.")

    def options(self) -> Sizes:
        """The rank."""
        return {"r": self.r}

    def trained(self, rows: int, columns: int) -> int:
        """Two pairs of factors, a third one for the bias, two numbers."""
        return self.r * (2 * (rows + columns) + columns + 1) + 2


plugin = GLoRA
