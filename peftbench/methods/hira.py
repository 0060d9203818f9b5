"""HiRA: an update that is the weight times a low-rank matrix, entry by entry (Huang et al., ICLR 2025)."""

from typing import ClassVar

from peftbench.core.fields import checked
from peftbench.methods._hub import LowRankMethod


@checked
class HiRA(LowRankMethod):
    """W' = W + W * (B A), entry by entry, so the update has the rank of W; B starts at zero."""

    kind: ClassVar[str] = "HIRA"


plugin = HiRA
