"""FT-LN: the LayerNorms alone."""

from dataclasses import dataclass

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._sites import norms
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class FTLN(Method):
    """y = (x - mean) / std * w + b with w and b of every norm trained, the one before the first block included.

    RMS norms have neither mean nor b; networks that have them instead train their w.
    """

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Chosen by kind of module: names differ from network to network (`norm1`, `ln_1`)."""
        chosen = set(norms(vit))
        tune = frozenset(name for name, _ in vit.named_parameters() if name.rpartition(".")[0] in chosen)
        if not tune:
            raise RequestError("ft_ln: this network has no norm with a scale, so nothing of it would train.")
        return Plan(tune=tune)


plugin = FTLN
