"""FT-LN: train the LayerNorms only."""

from torch import nn

from peftbench.core.fields import checked
from peftbench.errors import RequestError
from peftbench.methods._sites import norms
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@checked
class FTLN(Method):
    """y = (x - mean) / std * w + b with w and b of every norm trained, including a norm before the first block.

    RMS norms have neither mean nor b; in networks with RMS norms, w trains.
    """

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select by the type of module, since names differ between networks (`norm1`, `ln_1`)."""
        chosen = set(norms(vit))
        tune = frozenset(name for name, _ in vit.named_parameters() if name.rpartition(".")[0] in chosen)
        if not tune:
            raise RequestError("ft_ln: this network has no norm with a scale to train; choose another backbone.")
        return Plan(tune=tune)


plugin = FTLN
