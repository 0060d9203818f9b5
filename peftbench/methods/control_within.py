"""Control: in every tensor as many weights as SH-PEFT chooses there, but at random."""

from dataclasses import dataclass
from typing import Literal  # noqa: F401 - inherited fields are annotated with it, and read from here

import numpy as np
import torch
from torch import nn

from peftbench.methods.shpeft import SHPEFT
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class ControlWithin(SHPEFT):
    """What SH-PEFT owes to choosing tensors it shares, what it owes to choosing weights in them it loses.

    Its options are SH-PEFT's, and so are the counts; another seed of the job draws other weights.
    """

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """SH-PEFT's plan with the entries of each tensor drawn anew."""
        draw = np.random.default_rng([probe.seed, 12])
        chosen = super().plan(vit, probe).entries
        sizes = {name: (vit.get_parameter(name).numel(), len(index)) for name, index in chosen.items()}
        drawn = {n: np.sort(draw.choice(size, k, replace=False, shuffle=False)) for n, (size, k) in sizes.items()}
        return Plan(entries={name: torch.from_numpy(index) for name, index in drawn.items()})


plugin = ControlWithin
