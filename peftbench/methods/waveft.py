"""WaveFT: an update with few wavelet coefficients (Bilican et al., 2025)."""

from typing import ClassVar

from torch import nn

from peftbench.core.fields import Positive, checked
from peftbench.methods._hub import Coefficients
from peftbench.models.peft_tuners import HubTuner

TUNED_FOR = 768 * 768  # weights


class WaveTuner(HubTuner):
    """peft's tuner with a scale under which a coefficient moves the same share of a matrix of any size."""

    def __init__(self, base: nn.Module, n: int, scale: float, key: int) -> None:
        scaling = scale * (base.get_parameter("weight").numel() / TUNED_FOR) ** 0.5
        super().__init__(base, "WAVEFT", n_frequency=n, scaling=scaling, random_loc_seed=key)


@checked
class WaveFT(Coefficients):
    """W' = W + s IDWT(C), C zero except n coefficients at positions drawn from `key`, which start at zero."""

    kind: ClassVar[str] = "WAVEFT"
    tuner: ClassVar[type[HubTuner]] = WaveTuner

    scale: Positive = 25.0  # s for 768 x 768 weights, proportional to the root of the size of other matrices


plugin = WaveFT
