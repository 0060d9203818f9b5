"""VPT-Shallow: trained tokens before the first block (Jia et al., Visual Prompt Tuning, ECCV 2022)."""

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._prompts import Joining, Leaving, Prompted, Prompts
from peftbench.methods._sites import blocks
from peftbench.models.plan import Plan, Probe


@checked
class VPTShallow(Prompts):
    """[class, prompts, patches] from the first block to the last; prompts get no position embedding."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Insert prompts before the first block and remove them after the last."""
        first, last = "norm_pre" if self.before_norm_pre else blocks(vit)[0], blocks(vit)[-1]
        if first == last:
            return Plan(grafts={first: (Prompted, self.prompt_sizes(vit))})
        return Plan(grafts={first: (Joining, self.prompt_sizes(vit)), last: (Leaving, {"tokens": self.tokens})})


plugin = VPTShallow
