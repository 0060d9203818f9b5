"""Full fine-tuning."""

from dataclasses import dataclass

from torch import nn

from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class Full(Method):
    """Every tensor of the backbone."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """All names."""
        return Plan(tune=frozenset(name for name, _ in vit.named_parameters()))


plugin = Full
