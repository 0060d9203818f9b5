"""VPT-Deep: trained tokens of their own for every block (Jia et al., Visual Prompt Tuning, ECCV 2022)."""

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._prompts import Joining, Leaving, Prompted, Prompts
from peftbench.methods._sites import blocks
from peftbench.models.plan import Graft, Plan, Probe, Sizes


@checked
class VPTDeep(Prompts):
    """Each block's prompts replace those of the block before, whose outputs are dropped."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Insert and remove prompts at every block."""
        first, *others = blocks(vit)
        sizes = self.prompt_sizes(vit)
        grafts: dict[str, tuple[type[Graft], Sizes]] = dict.fromkeys((first, *others), (Prompted, sizes))
        if self.before_norm_pre:
            grafts |= {"norm_pre": (Joining, sizes), first: (Leaving, {"tokens": self.tokens})}
        return Plan(grafts=grafts)


plugin = VPTDeep
