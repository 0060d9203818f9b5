"""SHiRA: a sparse change at random places of each weight (Bhardwaj et al., NeurIPS 2024)."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.methods._hub import LowRank
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Graft, Sizes


class ShiraTuner(HubTuner):
    """peft's, with places (2, n) drawn by the job's seed and kept in the delta; without sparse tensors.

    The values stand where peft puts them, in row-major order.
    """

    def __init__(self, base: nn.Module, r: int) -> None:
        seed = int(torch.randint(2**31, (), device="cpu"))
        super().__init__(base, "SHIRA", r=r, random_seed=seed)
        layer: Any = self.base
        self.register_buffer("places", layer.shira_indices["default"])

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - r
        """r (in + out): a mask cannot be drawn on the meta device."""
        return int(sizes["r"]) * sum(base.get_parameter("weight").shape)

    def weight(self) -> Tensor:
        """The layer's with the change (out, in)."""
        rows, columns = self.get_buffer("places").long()
        values = self.get_parameter("base.shira_weight.default")
        return self.get_parameter("base.base_layer.weight").index_put((rows, columns), values, accumulate=True)

    def forward(self, x: Tensor) -> Tensor:
        """As peft's: one matrix product."""
        layer: Any = self.base
        return F.linear(x, self.weight(), layer.base_layer.bias)

    def merged(self) -> nn.Module:
        """One Linear layer."""
        plain = deepcopy(self.get_submodule("base.base_layer"))
        plain.get_parameter("weight").data = self.weight().detach()
        return plain


@dataclass(frozen=True)
class SHiRA(LowRank):
    """W' = W + S, S zero but for r (in + out) entries at random places; all start at zero."""

    kind: ClassVar[str] = "SHIRA"

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Ours, around peft's."""
        return ShiraTuner, {"r": self.r}

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Up to where a site has no more entries."""
        return range(1, min(rows * columns // (rows + columns) for rows, columns in self.shapes(vit)) + 1)


plugin = SHiRA
