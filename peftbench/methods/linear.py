"""Linear probe: a frozen backbone and a trained head."""

from torch import nn

from peftbench.core.fields import checked
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@checked
class Linear(Method):
    """Only the head trains."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Return an empty plan."""
        return Plan()


plugin = Linear
