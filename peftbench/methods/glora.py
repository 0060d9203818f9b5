"""GLoRA: low-rank changes of weight and bias, some proportional to them (Chavan et al., 2023)."""

from typing import ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.errors import RequestError
from peftbench.methods._hub import LowRankMethod
from peftbench.methods._sites import blocks
from peftbench.models.tensor_names import PROJECTIONS


@checked
class GLoRA(LowRankMethod):
    """W' = W + W * A + B and b' = b + b * D + E + W C; A, B, C of rank r, D and E scalars; all changes start at 0."""

    kind: ClassVar[str] = "GLORA"

    def refuse_misfit(self, vit: nn.Module) -> None:
        """Raise RequestError also if a layer has no bias to change."""
        super().refuse_misfit(vit)
        sites = [f"{block}.{PROJECTIONS[site]}" for block in blocks(vit) for site in self.sites]
        names = {name for name, _ in vit.named_parameters()}
        if bare := [site for site in sites if f"{site}.bias" not in names]:
            raise RequestError(f"glora: {bare[0]} of this network has no bias to change; choose other sites.")

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of two pairs of factors, a third pair for the bias and two scalars."""
        return self.r * (2 * (rows + columns) + columns + 1) + 2


plugin = GLoRA
