"""Control: in every tensor as many weights as SH-PEFT selects there, drawn at random."""

import numpy as np
import torch
from torch import nn

from peftbench.core.fields import checked
from peftbench.methods.shpeft import SHPEFT
from peftbench.models.plan import Plan, Probe


@checked
class ControlWithin(SHPEFT):
    """The control shares SH-PEFT's choice of tensors; the difference in score is due to its choice of weights in them.

    It has SH-PEFT's options and counts; another seed of the job draws other weights.
    """

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Return SH-PEFT's plan with random weights of each tensor."""
        draw = np.random.default_rng([probe.seed, 12])
        chosen = super().plan(vit, probe).entries
        sizes = {name: (vit.get_parameter(name).numel(), len(index)) for name, index in chosen.items()}
        drawn = {n: np.sort(draw.choice(size, k, replace=False, shuffle=False)) for n, (size, k) in sizes.items()}
        return Plan(entries={name: torch.from_numpy(index) for name, index in drawn.items()})


plugin = ControlWithin
