"""Control: as many single weights as SH-PEFT trains, drawn at random from the whole backbone."""

import numpy as np
import torch
from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._masked import Masked
from peftbench.models import top_k
from peftbench.models.plan import Plan, Probe


@checked
class ControlRandom(Masked):
    """Every weight is selected with the same probability; another seed of the job draws another mask."""

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Draw k weights without repetition."""
        sizes = {name: vit.get_parameter(name).numel() for name in self.candidates_in(vit)}
        draw = np.random.default_rng([probe.seed, 11])
        index = np.sort(draw.choice(sum(sizes.values()), self.count(vit), replace=False, shuffle=False))
        return Plan(entries=top_k.split(torch.from_numpy(index), sizes))


plugin = ControlRandom
