"""Linear probe: a frozen backbone and a trained head."""

from dataclasses import dataclass

from torch import nn

from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class Linear(Method):
    """Nothing but the head."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Nothing."""
        return Plan()


plugin = Linear
