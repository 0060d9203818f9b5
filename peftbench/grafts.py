"""Grafts that several methods share."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from peftbench.errors import PluginError
from peftbench.plan import Graft


class HubTuner(Graft):
    """One of Hugging Face peft's tuners around a Linear layer: `kind` is its PeftType, the sizes go to its config."""

    def __init__(self, base: nn.Module, kind: str, **options: Any) -> None:  # noqa: ANN401 - the tuner's own config types them
        import peft  # noqa: PLC0415 - imports transformers

        super().__init__(base)
        make: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[kind]]
        config = make(target_modules=["base"], **options)
        peft.inject_adapter_in_model(config, self)

    def forward(self, x: Tensor) -> Tensor:
        """What the tuner makes of the base layer."""
        out: Tensor = self.base(x)
        return out

    def merged(self) -> nn.Module:
        """The base layer with the change folded in."""
        from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 - imports transformers

        layer = deepcopy(self.base)
        if not isinstance(layer, BaseTunerLayer):
            raise PluginError(f"peft left a {type(layer).__name__} where its tuner layer should be.")
        layer.merge(safe_merge=True)
        plain: nn.Module = layer.get_base_layer()
        return plain


class LoRATuner(HubTuner):
    """peft's LoRA, counted by its formula."""

    def __init__(self, base: nn.Module, r: int, alpha: int, dropout: float = 0.0) -> None:
        super().__init__(base, "LORA", r=r, lora_alpha=alpha, lora_dropout=dropout)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401
        """r (in + out)."""
        rows, columns = base.get_parameter("weight").shape
        return int(sizes["r"]) * (rows + columns)
