"""VPT-Deep: fresh trained tokens before every block (Jia et al., Visual Prompt Tuning, ECCV 2022)."""

from dataclasses import dataclass

from torch import nn

from peftbench.methods._prompts import Joining, Leaving, Prompted, Prompts
from peftbench.methods._sites import blocks
from peftbench.models.plan import Graft, Plan, Probe, Sizes


@dataclass(frozen=True)
class VPTDeep(Prompts):
    """Each block's prompts replace those of the block before, whose outputs are dropped."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Every block lets its own in and out again."""
        first, *others = blocks(vit)
        grafts: dict[str, tuple[type[Graft], Sizes]] = {site: (Prompted, self.drawn(vit)) for site in (first, *others)}
        if self.before_norm_pre:
            grafts |= {"norm_pre": (Joining, self.drawn(vit)), first: (Leaving, {"tokens": self.tokens})}
        return Plan(grafts=grafts)


plugin = VPTDeep
