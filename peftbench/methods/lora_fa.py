"""LoRA-FA: LoRA whose first matrix stays as it was drawn (Zhang et al., 2023)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._sites import PROJECTIONS, blocks, width
from peftbench.methods._stepped import Stepped
from peftbench.models.peft_tuners import LoRATuner
from peftbench.models.plan import Plan, Probe


class FrozenDown(LoRATuner):
    """W x + b + (alpha / r) B (A x), A frozen; it goes into the delta with B."""

    def __init__(self, base: nn.Module, r: int, alpha: int, dropout: float = 0.0) -> None:
        super().__init__(base, r, alpha, dropout)
        self.get_submodule("base.lora_A").requires_grad_(requires_grad=False)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """r out."""
        return int(sizes["r"]) * len(base.get_parameter("weight"))


@dataclass(frozen=True)
class LoRAFA(Stepped):
    """Backward needs A x (r numbers a token) of a layer instead of x, which is what LoRA keeps in memory."""

    knob: ClassVar[str | None] = "r"

    r: int = 8
    alpha: int | Literal["r"] = 8  # "r": the scale alpha/r stays 1 whatever the rank
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise RequestError(f"lora_fa: r = {self.r} will not do: the rank is at least 1.")
        if self.alpha != "r" and self.alpha < 1:
            raise RequestError(f"lora_fa: alpha = {self.alpha} will not do: it is at least 1, or r.")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"lora_fa: dropout = {self.dropout} will not do: it lies in [0, 1).")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around the fused query, key and value of every block."""
        size = {**self.values(), "alpha": self.r if self.alpha == "r" else self.alpha}
        return Plan(grafts={f"{block}.{PROJECTIONS['qkv']}": (FrozenDown, size) for block in blocks(vit)})

    def most(self, vit: nn.Module) -> int:
        """The width."""
        return width(vit)


plugin = LoRAFA
