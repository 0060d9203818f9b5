"""The class frequencies of the training part for every image: the score of a model that ignores the image."""

from typing import ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@checked
class Majority(Method):
    """Nothing trains, not even a head: the logits are the log frequencies."""

    trains: ClassVar[bool] = False
    merges: ClassVar[bool] = False  # there is nothing to merge

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Return an empty plan."""
        return Plan()


plugin = Majority
