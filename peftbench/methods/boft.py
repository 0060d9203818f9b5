"""BOFT with one butterfly factor: turned blocks of inputs and a scale an output (Liu et al., ICLR 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.methods._hub import HubMethod, common, divisors
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class BOFT(HubMethod):
    """y = diag(s) W R x + b, R block-diagonal of rotations by the Cayley transform, zero angles and s one at first."""

    kind: ClassVar[str] = "BOFT"
    knob: ClassVar[str | None] = "block"

    block: int = 4  # inputs that are turned together

    def options(self) -> Sizes:
        """One factor: with more, peft computes another thing where its CUDA kernel was not built."""
        return {"boft_block_size": self.block, "boft_n_butterfly_factor": 1}

    def trained(self, rows: int, columns: int) -> int:
        """Blocks whole, though only their skew-symmetric part counts in the result, and the scales."""
        return columns * self.block + rows

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """What divides the inputs of every site."""
        return divisors(common(self.shapes(vit), side=1), least=2)


plugin = BOFT
