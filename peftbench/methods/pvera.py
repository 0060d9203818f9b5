"""PVeRA: VeRA whose inner activations are drawn from a learned normal distribution (2025)."""

from typing import ClassVar

from peftbench.core.fields import checked
from peftbench.methods.vera import VeRA


@checked
class PVeRA(VeRA):
    """VeRA with a mean and a variance of the inner activations; training samples, prediction uses the mean."""

    kind: ClassVar[str] = "PVERA"

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of VeRA's vectors, with one vector each for mean and variance."""
        return rows + 2 * self.r


plugin = PVeRA
