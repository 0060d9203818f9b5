"""Control: the norm scales with the largest magnitude."""

from torch import nn

from peftbench.core.fields import Share, checked
from peftbench.methods._masked import Masked
from peftbench.methods._sites import norms
from peftbench.models.plan import Plan, Probe
from peftbench.models.top_k import largest


@checked
class ControlNorm(Masked):
    """What magnitude alone prefers: scales of norms are near 1, entries of matrices much smaller."""

    ratio: Share = 0.0001  # share of the backbone's weights; scales are few (0.022% of ViT-B/16)

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select the k scales of the largest absolute value."""
        return Plan(
            entries=largest(
                {n: vit.get_parameter(n).detach().cpu().double().abs() for n in self.candidates_in(vit)},
                self.count(vit),
            )
        )

    def candidates_in(self, vit: nn.Module) -> list[str]:
        """Return the weight of every norm."""
        return [f"{name}.weight" for name in norms(vit)]


plugin = ControlNorm
