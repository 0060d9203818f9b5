"""PSOFT: the largest singular directions of each weight turned and stretched (Wu et al., ICLR 2026)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from peftbench.methods._hub import LowRank
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Graft, Sizes


class PsoftTuner(HubTuner):
    """peft's, whose singular directions go with the delta: their signs depend on the machine, and the turn on them."""

    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, "PSOFT", r=r, psoft_alpha=r)
        layer: Any = self.base
        self.register_buffer("inward", layer._psoft_A_cache["default"])  # noqa: SLF001 - peft offers no other way
        self.register_buffer("outward", layer._psoft_B_cache["default"])  # noqa: SLF001 - likewise

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the signature is the contract's
        """By formula: nothing is decomposed on the meta device."""
        return free(int(sizes["r"]))


@dataclass(frozen=True)
class PSOFT(LowRank):
    """W' = W + U S (diag(a) R diag(b) - 1) V'; U S V' of rank r, R a Cayley transform, the identity like a and b."""

    kind: ClassVar[str] = "PSOFT"

    r: int = 32

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Ours, around peft's."""
        return PsoftTuner, {"r": self.r}

    def trained(self, rows: int, columns: int) -> int:
        """Whatever the site's size."""
        return free(self.r)


def free(r: int) -> int:
    """The angles of a turn in r dimensions and two lengths a dimension."""
    return r * (r - 1) // 2 + 2 * r


plugin = PSOFT
