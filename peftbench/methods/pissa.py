"""PiSSA: LoRA that starts from the largest singular directions of each weight (Meng et al., NeurIPS 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.methods._hub import LowRank
from peftbench.models.peft_tuners import LoRATuner
from peftbench.models.plan import Graft, Sizes


class PiSSATuner(LoRATuner):
    """y = Wx + b + (B A - B0 A0) x. The first factors are buffers, so that W stays what it was and a delta is small."""

    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, r=r, alpha=r)
        first = principal(base.get_parameter("weight").detach(), r)
        for name, side, values in zip(("down", "up"), "AB", first, strict=True):
            self.get_parameter(f"base.lora_{side}.default.weight").data.copy_(values)
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        """The residual's output and the factors'."""
        return super().forward(x) - F.linear(F.linear(x, self.get_buffer("down")), self.get_buffer("up"))

    def merged(self) -> nn.Module:
        """One Linear layer."""
        plain = super().merged()
        with torch.no_grad():
            plain.get_parameter("weight").sub_(self.get_buffer("up") @ self.get_buffer("down"))
        return plain


def principal(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) whose product is the best of rank r; the singular values go half to each."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = values[:r].sqrt()
    return root[:, None] * right[:r], left[:, :r] * root


@dataclass(frozen=True)
class PiSSA(LowRank):
    """y = (W - B0 A0) x + b + B A x, A and B starting at A0 and B0, the r largest singular directions of W."""

    kind: ClassVar[str] = "LORA"

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Ours, around peft's LoRA."""
        return PiSSATuner, {"r": self.r}


plugin = PiSSA
