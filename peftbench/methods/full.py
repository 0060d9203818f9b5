"""Full fine-tuning."""

from torch import nn

from peftbench.core.fields import checked
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@checked
class Full(Method):
    """Every tensor of the backbone."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select all names."""
        return Plan(tune=frozenset(name for name, _ in vit.named_parameters()))


plugin = Full
