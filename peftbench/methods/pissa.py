"""PiSSA: LoRA that starts from the largest singular directions of each weight (Meng et al., NeurIPS 2024)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import checked
from peftbench.methods._hub import LowRankMethod
from peftbench.models.peft_tuners import LoRATuner
from peftbench.models.plan import Graft, Sizes


class PiSSATuner(LoRATuner):
    """y = Wx + b + (B A - B0 A0) x. B0 and A0 are buffers, so W stays unchanged and a delta is small."""

    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, r=r, alpha=r)
        first = principal(base.get_parameter("weight").detach(), r)
        for name, side, values in zip(("down", "up"), "AB", first, strict=True):
            self.get_parameter(f"base.lora_{side}.default.weight").data.copy_(values)
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(x) - F.linear(F.linear(x, self.get_buffer("down")), self.get_buffer("up"))

    def merged(self) -> nn.Module:
        """Return one Linear layer."""
        plain = super().merged()
        with torch.no_grad():
            plain.get_parameter("weight").sub_(self.get_buffer("up") @ self.get_buffer("down"))
        return plain


def principal(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return A (r, in) and B (out, r), the best approximation of rank r; each gets the root of the singular values."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = values[:r].sqrt()
    return root[:, None] * right[:r], left[:, :r] * root


@checked
class PiSSA(LowRankMethod):
    """y = (W - B0 A0) x + b + B A x, A and B starting at A0 and B0, the r largest singular directions of W."""

    kind: ClassVar[str] = "LORA"

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Return the method's own adapter around peft's LoRA."""
        return PiSSATuner, {"r": self.r}


plugin = PiSSA
