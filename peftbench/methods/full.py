"""Full fine-tuning, with layer-wise learning-rate decay and stochastic depth as options."""

from types import MappingProxyType
from typing import Any

from timm.layers.drop import DropPath
from torch import Tensor, nn

from peftbench.core.fields import Fraction, Share, checked
from peftbench.errors import RequestError
from peftbench.methods._sites import blocks
from peftbench.models.method import Method
from peftbench.models.plan import Graft, Plan, Probe, Sizes
from peftbench.models.tensor_names import BEFORE_BLOCKS


class StochasticDepth(Graft):
    """Drop the input of `base` for a random share `rate` of the images of a training step, and scale the others up."""

    def __init__(self, base: nn.Module, rate: float) -> None:
        super().__init__(base)
        self.drop_path = DropPath(rate)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Return 0: it has no parameters."""
        return 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        out: Tensor = self.base(self.drop_path(x))
        return out

    def merged(self) -> nn.Module:
        """Return `base`, which computes the same in evaluation mode."""
        return self.base


@checked
class Full(Method):
    """Every tensor of the backbone.

    With `layer_decay` d, the tensors of block i of L learn at d^(L - i) times the rate, those before the blocks at
    d^(L + 1) times, those after them at the rate, as in BEiT and MAE. With `drop_path` p, block i drops each of its
    branches with probability p i / (L - 1).
    """

    tuned = MappingProxyType({"layer_decay": (0.75,), "drop_path": (0.1,)})

    layer_decay: Share = 1.0  # usual values: 0.65 to 1
    drop_path: Fraction = 0.0

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select all names."""
        names = [name for name, _ in vit.named_parameters()]
        multipliers = self.multipliers(vit, names) if self.layer_decay < 1 else {}
        return Plan(tune=frozenset(names), grafts=self.stochastic_depth(vit), lr_multipliers=multipliers)

    def multipliers(self, vit: nn.Module, names: list[str]) -> dict[str, float]:
        """Return for every tensor the multiple of the learning rate at which it learns."""
        depth = {f"{block}.": number for number, block in enumerate(blocks(vit), start=1)}
        depth |= dict.fromkeys(BEFORE_BLOCKS, 0)
        top = len(blocks(vit)) + 1
        layers = {name: next((n for start, n in depth.items() if name.startswith(start)), top) for name in names}
        return {name: self.layer_decay ** (top - layer) for name, layer in layers.items()}

    def stochastic_depth(self, vit: nn.Module) -> dict[str, tuple[type[Graft], Sizes]]:
        """Return the wrappers of both branches of every block, with rates that grow linearly from 0 to `drop_path`."""
        if not self.drop_path:
            return {}
        names = blocks(vit)
        present = {name for name, _ in vit.named_modules()}
        if any(f"{block}.drop_path{branch}" not in present for block in names for branch in (1, 2)):
            raise RequestError("full: drop_path must be 0 for this network, whose blocks have no drop_path1 and 2.")
        rates = {block: self.drop_path * i / max(1, len(names) - 1) for i, block in enumerate(names)}
        return {
            f"{block}.drop_path{branch}": (StochasticDepth, {"rate": rate})
            for block, rate in rates.items()
            for branch in (1, 2)
            if rate
        }


plugin = Full
