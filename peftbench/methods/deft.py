"""DEFT: replace the part of each weight in a learned subspace of the outputs (NeurIPS 2025)."""

from typing import ClassVar, Literal

from peftbench.core.fields import checked
from peftbench.methods._hub import LowRankMethod
from peftbench.models.plan import Sizes


@checked
class DEFT(LowRankMethod):
    """W' = W - Q S' W + Q R, Q (out, r) and S = relu(Q), or both its orthonormal columns; R starts as S' W."""

    kind: ClassVar[str] = "DEFT"

    decomposition: Literal["relu", "qr"] = "relu"

    def options(self) -> Sizes:
        """Return the rank and the kind of projection."""
        return {"r": self.r, "decomposition_method": self.decomposition}


plugin = DEFT
