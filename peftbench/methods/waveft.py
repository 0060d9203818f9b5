"""WaveFT: a change with few wavelet coefficients (Bilican et al., 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.methods._hub import HubMethod
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Graft, Sizes

TUNED_FOR = 768 * 768  # weights


class WaveTuner(HubTuner):
    """peft's, with a scale under which a coefficient moves the same share of a matrix whatever its size."""

    def __init__(self, base: nn.Module, n: int, scale: float, key: int) -> None:
        scaling = scale * (base.get_parameter("weight").numel() / TUNED_FOR) ** 0.5
        super().__init__(base, "WAVEFT", n_frequency=n, scaling=scaling, random_loc_seed=key)


@dataclass(frozen=True)
class WaveFT(HubMethod):
    """W' = W + s IDWT(C), C zero but for n coefficients at places drawn from `key`, which start at zero."""

    kind: ClassVar[str] = "WAVEFT"
    knob: ClassVar[str | None] = "n"

    n: int = 1000  # coefficients a site
    scale: float = 25.0  # s at 768 x 768 weights, with the root of the size at others
    key: int = 777

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Ours, around peft's."""
        return WaveTuner, {"n": self.n, "scale": self.scale, "key": self.key}

    def trained(self, rows: int, columns: int) -> int:
        """The coefficients."""
        return self.n

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """As many as the smallest site has weights, at most."""
        return range(1, min(rows * columns for rows, columns in self.shapes(vit)) + 1)


plugin = WaveFT
