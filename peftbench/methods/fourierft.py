"""FourierFT: an update whose spectrum has few entries (Gao et al., ICML 2024)."""

from typing import ClassVar

from torch import nn

from peftbench.core.fields import Positive, checked
from peftbench.methods._hub import Coefficients
from peftbench.models.peft_tuners import HubTuner

TUNED_FOR = 768 * 768  # weights of the query and value projections for which the paper chose its scale


class FourierTuner(HubTuner):
    """peft's tuner with a scale that grows with the matrix, so that an entry moves each weight by the same amount."""

    def __init__(self, base: nn.Module, n: int, scale: float, key: int) -> None:
        scaling = scale * base.get_parameter("weight").numel() / TUNED_FOR
        super().__init__(base, "FOURIERFT", n_frequency=n, scaling=scaling, random_loc_seed=key)


@checked
class FourierFT(Coefficients):
    """W' = W + s Re IDFT(F), F zero except n entries at positions drawn from `key`, which start normal."""

    kind: ClassVar[str] = "FOURIERFT"
    identity: ClassVar[bool] = False
    tuner: ClassVar[type[HubTuner]] = FourierTuner

    scale: Positive = 150.0  # s for 768 x 768 weights, proportional to the size of other matrices


plugin = FourierFT
