"""RoAd: pairs of outputs turned and stretched (Liao and Monz, NeurIPS 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._hub import HubMethod, common
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class RoAd(HubMethod):
    """y = R (Wx + b), R of 2 x 2 blocks; 1: angle and length a pair, 2: for each of its outputs, 4: all entries."""

    kind: ClassVar[str] = "ROAD"
    knob: ClassVar[str | None] = "variant"

    variant: Literal[1, 2, 4] = 1
    group: int = 32  # outputs i and i + group/2 make a pair

    def options(self) -> Sizes:
        """The variant and how outputs are paired."""
        return {"variant": f"road_{self.variant}", "group_size": self.group}

    def trained(self, rows: int, columns: int) -> int:
        """An angle and a length each."""
        return self.variant * rows

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """The three variants. Raises RequestError where `group` is odd or does not divide the outputs."""
        if (outputs := common(self.shapes(vit), side=0)) % self.group or self.group % 2:
            raise RequestError(
                f"road: group = {self.group} will not do: it is even and divides the outputs, {outputs}."
            )
        return 1, 2, 4


plugin = RoAd
