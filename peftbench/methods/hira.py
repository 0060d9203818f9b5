"""HiRA: the weight's own entries times a low-rank matrix (Huang et al., ICLR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods._hub import LowRank


@dataclass(frozen=True)
class HiRA(LowRank):
    """W' = W + W * (B A), entry by entry, so that the change has W's rank; B zero at the start."""

    kind: ClassVar[str] = "HIRA"


plugin = HiRA
