"""DEFT: a subspace of each weight's outputs removed and filled anew (2025)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from peftbench.methods._hub import LowRank
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class DEFT(LowRank):
    """W' = W - Q S' W + Q R, Q (out, r) and S = relu(Q), or both its orthonormal columns; R starts as S' W."""

    kind: ClassVar[str] = "DEFT"

    decomposition: Literal["relu", "qr"] = "relu"

    def options(self) -> Sizes:
        """Rank and kind of projection."""
        return {"r": self.r, "decomposition_method": self.decomposition}


plugin = DEFT
