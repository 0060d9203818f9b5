"""PVeRA: VeRA whose inner vector is drawn from a learnt normal distribution (2025)."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods.vera import VeRA


@dataclass(frozen=True)
class PVeRA(VeRA):
    """VeRA with a mean and a variance of the inner activations; training draws, prediction takes the mean."""

    kind: ClassVar[str] = "PVERA"

    def trained(self, rows: int, columns: int) -> int:
        """Mean and variance take a vector each."""
        return rows + 2 * self.r


plugin = PVeRA
