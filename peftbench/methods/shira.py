"""SHiRA: a sparse update at random positions of each weight (Bhardwaj et al., NeurIPS 2024)."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import checked
from peftbench.methods._hub import LowRankMethod
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Graft, Sizes


class ShiraTuner(HubTuner):
    """peft's tuner without sparse tensors; positions (2, n) are drawn from the job's seed and stored in the delta.

    The values are ordered as in peft: row by row.
    """

    def __init__(self, base: nn.Module, r: int) -> None:
        seed = int(torch.randint(2**31, (), device="cpu"))
        super().__init__(base, "SHIRA", r=r, random_seed=seed)
        layer: Any = self.base
        self.register_buffer("places", layer.shira_indices["default"])

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - r
        """Return r (in + out): a mask cannot be drawn on the meta device."""
        return int(sizes["r"]) * sum(base.get_parameter("weight").shape)

    def weight(self) -> Tensor:
        """Return the weight (out, in) with the update."""
        rows, columns = self.get_buffer("places").long()
        values = self.get_parameter("base.shira_weight.default")
        return self.get_parameter("base.base_layer.weight").index_put((rows, columns), values, accumulate=True)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), one matrix product as in peft."""
        layer: Any = self.base
        return F.linear(x, self.weight(), layer.base_layer.bias)

    def merged(self) -> nn.Module:
        """Return one Linear layer."""
        plain = deepcopy(self.get_submodule("base.base_layer"))
        plain.get_parameter("weight").data = self.weight().detach()
        return plain


@checked
class SHiRA(LowRankMethod):
    """W' = W + S, S zero except r (in + out) entries at random positions, which start at zero."""

    kind: ClassVar[str] = "SHIRA"

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Return the method's own adapter around peft's tuner."""
        return ShiraTuner, {"r": self.r}

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return 1 to the rank at which the smallest layer has no more entries."""
        return range(1, min(rows * columns // (rows + columns) for rows, columns in self.shapes(vit)) + 1)


plugin = SHiRA
