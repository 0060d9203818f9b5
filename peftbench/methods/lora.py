"""LoRA: a low-rank change beside chosen projections (Hu et al., ICLR 2022), through Hugging Face peft."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._sites import PROJECTIONS, blocks, width
from peftbench.methods._stepped import Stepped
from peftbench.models.peft_tuners import LoRATuner
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class LoRA(Stepped):
    """y = Wx + b + (alpha/r) B A x with A (r, in) uniform and B (out, r) zero, so that step 0 is the pretrained model.

    On timm's fused qkv one A serves query, key and value.
    """

    knob: ClassVar[str | None] = "r"

    r: int = 8
    alpha: int | Literal["r"] = 8  # "r": the scale alpha/r stays 1 whatever the rank
    sites: tuple[str, ...] = ("qkv",)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if strange := [site for site in self.sites if site not in PROJECTIONS] or ([] if self.sites else ["nothing"]):
            raise RequestError(
                f"lora: sites = {strange[0]!r} will not do: there are {', '.join(PROJECTIONS)}; join several with +."
            )
        if len(set(self.sites)) < len(self.sites):
            raise RequestError(f"lora: sites = {'+'.join(self.sites)} will not do: each may stand there once.")
        if self.r < 1:
            raise RequestError(f"lora: r = {self.r} will not do: the rank is at least 1.")
        if self.alpha != "r" and self.alpha < 1:
            raise RequestError(f"lora: alpha = {self.alpha} will not do: it is at least 1, or r.")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"lora: dropout = {self.dropout} will not do: it lies in [0, 1).")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around every chosen projection of every block."""
        alpha = self.r if self.alpha == "r" else self.alpha
        places = [f"{block}.{PROJECTIONS[site]}" for block in blocks(vit) for site in self.sites]
        return Plan(
            grafts={place: (LoRATuner, {"r": self.r, "alpha": alpha, "dropout": self.dropout}) for place in places}
        )

    def most(self, vit: nn.Module) -> int:
        """The width."""
        return width(vit)


plugin = LoRA
