"""Adapters around Hugging Face peft's tuners, which several methods use."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.errors import PluginError, RequestError
from peftbench.models.plan import Graft, Shared

SINCE = {  # the first version of peft with a tuner, if newer than the oldest that pyproject.toml allows
    **dict.fromkeys(("DELORA", "ROAD", "WAVEFT"), "0.18"),
    **dict.fromkeys(("GRALORA", "PEANUT", "PSOFT", "PVERA", "TINYLORA"), "0.19"),
    **dict.fromkeys(("DEFT", "GLORA", "HIRA"), "0.20"),
}


def wrap_base(holder: nn.Module, kind: str, options: dict[str, Any]) -> nn.Module:
    """Let peft put the tuner `kind` (a peft.PeftType) around `holder.base`; return peft's model of it.

    Values are drawn on the CPU, since peft mixes CPU generators with the default device. Raises RequestError if the
    installed peft has no such tuner.
    """
    import peft  # noqa: PLC0415 - imports transformers

    if kind not in peft.PeftType.__members__:
        needs = SINCE.get(kind, "in a newer version")
        raise RequestError(f"{kind} needs peft {needs}, got {peft.__version__}; run `pip install -U peft`.")
    which = peft.PeftType[kind]
    with torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual options and CUDA kernels that were not built
        config_type: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[which]
        config = config_type(target_modules=["base"], **options)
        model: nn.Module = peft.PEFT_TYPE_TO_TUNER_MAPPING[which](holder, {"default": config}, "default")
    return model


class HubShared(Shared):
    """The tensors that peft's tuner `kind` shares among layers; the largest has `rows` outputs and `columns` inputs.

    peft draws them as it would for a model of the whole network.
    """

    def __init__(self, kind: str, rows: int, columns: int, **options: Any) -> None:  # noqa: ANN401 - peft types them
        super().__init__()
        holder = nn.Module()
        holder.base = nn.Linear(columns, rows, bias=False, device="cpu")
        for name, module in wrap_base(holder, kind, options).named_children():
            if name != "model":
                self.add_module(name, module)
        self.to(torch.get_default_device())


class HubTuner(Graft):
    """One of peft's tuners around a Linear layer: `kind` is its PeftType, `options` are passed to its config."""

    def __init__(
        self,
        base: nn.Module,
        kind: str,
        shared: HubShared | None = None,
        **options: Any,  # noqa: ANN401 - likewise
    ) -> None:
        super().__init__(base)
        weight = base.get_parameter("weight")
        wrap_base(self, kind, options)
        for name, module in shared.named_children() if shared else ():
            setattr(self.base, name, module.to(weight.dtype))
        for held in vars(self.base).values():  # peft stores positions in dicts, not in buffers
            if isinstance(held, dict) and isinstance(held.get("default"), Tensor):
                held["default"] = held["default"].to(weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = self.base(x)
        return out

    def merged(self) -> nn.Module:
        """Return the base layer with the update in its weight."""
        from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 - imports transformers

        layer = deepcopy(self.base)
        if not isinstance(layer, BaseTunerLayer):
            raise PluginError(f"peft created a {type(layer).__name__} instead of a tuner layer.")
        layer.merge(safe_merge=True)
        plain: nn.Module = layer.get_base_layer()
        return plain


class LoRATuner(HubTuner):
    """peft's LoRA, with a formula for its count."""

    def __init__(self, base: nn.Module, r: int, alpha: int, dropout: float = 0.0) -> None:
        super().__init__(base, "LORA", r=r, lora_alpha=alpha, lora_dropout=dropout)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401
        """Return r (in + out)."""
        rows, columns = base.get_parameter("weight").shape
        return int(sizes["r"]) * (rows + columns)
