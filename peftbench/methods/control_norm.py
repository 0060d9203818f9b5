"""Control: the largest scales of the norms."""

from dataclasses import dataclass

from torch import nn

from peftbench.methods._masked import Masked
from peftbench.methods._sites import norms
from peftbench.models.plan import Plan, Probe
from peftbench.models.top_k import largest


@dataclass(frozen=True)
class ControlNorm(Masked):
    """What magnitude alone prefers where norms have scales near 1 and matrices hold small numbers."""

    ratio: float = 0.0001  # share of the backbone's weights; there are few scales (0.022% of ViT-B/16)

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """The k scales of the largest absolute value."""
        return Plan(
            entries=largest(
                {n: vit.get_parameter(n).detach().cpu().double().abs() for n in self.candidates_in(vit)},
                self.count(vit),
            )
        )

    def candidates_in(self, vit: nn.Module) -> list[str]:
        """The weight of every norm."""
        return [f"{name}.weight" for name in norms(vit)]


plugin = ControlNorm
