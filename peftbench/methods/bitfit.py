"""BitFit: train every bias (Ben Zaken, Goldberg, Ravfogel, ACL 2022)."""

from torch import nn

from peftbench.core.fields import checked
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@checked
class BitFit(Method):
    """Biases of linear layers, norms and the patch embedding.

    The key bias among them has zero gradient, since softmax is invariant to shifts.
    """

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select every tensor whose own name contains `bias`, as the authors' code does."""
        return Plan(tune=frozenset(name for name, _ in vit.named_parameters() if "bias" in name.rpartition(".")[2]))


plugin = BitFit
