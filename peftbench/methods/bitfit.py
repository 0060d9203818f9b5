"""BitFit: every bias (Ben Zaken, Goldberg, Ravfogel, ACL 2022)."""

from dataclasses import dataclass

from torch import nn

from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class BitFit(Method):
    """Biases of linear layers, norms and the patch embedding.

    The key bias among them has no gradient: softmax ignores it.
    """

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Every tensor whose own name says bias, as the authors' code chooses."""
        return Plan(tune=frozenset(name for name, _ in vit.named_parameters() if "bias" in name.rpartition(".")[2]))


plugin = BitFit
