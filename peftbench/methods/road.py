"""RoAd: rotate and scale pairs of outputs (Liao and Monz, NeurIPS 2024)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import nn

from peftbench.core.fields import checked
from peftbench.errors import RequestError
from peftbench.methods._fields import Size
from peftbench.methods._hub import HubMethod, common_divisor
from peftbench.models.plan import Sizes


@checked
class RoAd(HubMethod):
    """y = R (Wx + b), R of 2 x 2 blocks; 1: angle and scale per pair, 2: per output, 4: per entry of the block."""

    kind: ClassVar[str] = "ROAD"
    knob: ClassVar[str | None] = "variant"

    variant: Literal[1, 2, 4] = 1
    group: Size = 32  # outputs i and i + group/2 are a pair

    def options(self) -> Sizes:
        """Return the variant and the pairing of outputs."""
        return {"variant": f"road_{self.variant}", "group_size": self.group}

    def trained(self, rows: int, columns: int) -> int:
        """Return `variant` parameters per output."""
        return self.variant * rows

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return the three variants. Raises RequestError if `group` is odd or does not divide the outputs."""
        if (outputs := common_divisor(self.shapes(vit), side=0)) % self.group or self.group % 2:
            raise RequestError(f"road: group must be even and divide the {outputs} outputs, got {self.group}.")
        return 1, 2, 4


plugin = RoAd
