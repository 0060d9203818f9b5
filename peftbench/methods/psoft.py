"""PSOFT: rotate and scale within the largest singular directions of each weight (Wu et al., ICLR 2026)."""

from typing import Any, ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._fields import Size
from peftbench.methods._hub import LowRankMethod
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Graft, Sizes


class PsoftTuner(HubTuner):
    """peft's tuner with its singular directions as buffers, since their signs differ between machines."""

    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, "PSOFT", r=r, psoft_alpha=r)
        layer: Any = self.base
        self.register_buffer("inward", layer._psoft_A_cache["default"])  # noqa: SLF001 - peft offers no other way
        self.register_buffer("outward", layer._psoft_B_cache["default"])  # noqa: SLF001 - peft offers no other way

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the signature is the contract's
        """Return the count by formula: no decomposition on the meta device."""
        return trainable(int(sizes["r"]))


@checked
class PSOFT(LowRankMethod):
    """W' = W + U S (diag(a) R diag(b) - 1) V'; U S V' of rank r, R a Cayley transform; R, a, b start as identity."""

    kind: ClassVar[str] = "PSOFT"

    r: Size = 32

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Return the method's own adapter around peft's tuner."""
        return PsoftTuner, {"r": self.r}

    def trained(self, rows: int, columns: int) -> int:
        """Return a number that depends on the rank only."""
        return trainable(self.r)


def trainable(r: int) -> int:
    """Return the number of angles of a rotation in r dimensions and two scales per dimension."""
    return r * (r - 1) // 2 + 2 * r


plugin = PSOFT
