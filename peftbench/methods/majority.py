"""The class frequencies of train, whatever the image: what accuracy alone would flatter."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class Majority(Method):
    """No training, not even of a head: the logits are the log frequencies."""

    trains: ClassVar[bool] = False
    merges: ClassVar[bool] = False  # there is nothing to fold

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Nothing."""
        return Plan()


plugin = Majority
