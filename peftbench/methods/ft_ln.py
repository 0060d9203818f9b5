"""FT-LN: the LayerNorms alone."""

from dataclasses import dataclass

from torch import nn

from peftbench.method import Method
from peftbench.plan import Plan, Probe


@dataclass(frozen=True)
class FTLN(Method):
    """y = (x - mean) / std * w + b with w and b of every LayerNorm trained, the one before the first block included."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Chosen by kind of module: names differ from network to network (`norm1`, `ln_1`)."""
        norms = {name for name, module in vit.named_modules() if isinstance(module, nn.LayerNorm)}
        return Plan(tune=frozenset(name for name, _ in vit.named_parameters() if name.rpartition(".")[0] in norms))


plugin = FTLN
