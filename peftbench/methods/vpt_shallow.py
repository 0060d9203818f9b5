"""VPT-Shallow: trained tokens before the first block (Jia et al., Visual Prompt Tuning, ECCV 2022)."""

from dataclasses import dataclass

from torch import nn

from peftbench.methods._prompts import Joining, Leaving, Prompted, Prompts
from peftbench.methods._sites import blocks
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class VPTShallow(Prompts):
    """[class, prompts, patches] from the first block to the last; prompts have no position embedding."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """The first block lets them in, the last one out."""
        first, last = "norm_pre" if self.before_norm_pre else blocks(vit)[0], blocks(vit)[-1]
        if first == last:
            return Plan(grafts={first: (Prompted, self.drawn(vit))})
        return Plan(grafts={first: (Joining, self.drawn(vit)), last: (Leaving, {"tokens": self.tokens})})


plugin = VPTShallow
