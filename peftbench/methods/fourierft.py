"""FourierFT: a change whose spectrum has few entries (Gao et al., ICML 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.methods._hub import HubMethod
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Graft, Sizes

TUNED_FOR = 768 * 768  # weights of the query and value projections that the paper's scale is meant for


class FourierTuner(HubTuner):
    """peft's, with a scale under which an entry moves each weight equally whatever the size of the matrix."""

    def __init__(self, base: nn.Module, n: int, scale: float, key: int) -> None:
        scaling = scale * base.get_parameter("weight").numel() / TUNED_FOR
        super().__init__(base, "FOURIERFT", n_frequency=n, scaling=scaling, random_loc_seed=key)


@dataclass(frozen=True)
class FourierFT(HubMethod):
    """W' = W + s Re IDFT(F), F zero but for n entries at places drawn from `key`, which start normal."""

    kind: ClassVar[str] = "FOURIERFT"
    knob: ClassVar[str | None] = "n"
    identity: ClassVar[bool] = False

    n: int = 1000  # entries a site
    scale: float = 150.0  # s at 768 x 768 weights, in proportion at others
    key: int = 777

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Ours, around peft's."""
        return FourierTuner, {"n": self.n, "scale": self.scale, "key": self.key}

    def trained(self, rows: int, columns: int) -> int:
        """The entries."""
        return self.n

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Up to all entries of the smallest site."""
        return range(1, min(rows * columns for rows, columns in self.shapes(vit)) + 1)


plugin = FourierFT
