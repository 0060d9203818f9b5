"""Grafts that several methods share."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.errors import PluginError, RequestError
from peftbench.models.plan import Graft, Shared

SINCE = {  # the first peft that has a tuner, where that is newer than the oldest that pyproject.toml admits
    **dict.fromkeys(("DELORA", "ROAD", "WAVEFT"), "0.18"),
    **dict.fromkeys(("GRALORA", "PEANUT", "PSOFT", "PVERA", "TINYLORA"), "0.19"),
    **dict.fromkeys(("DEFT", "GLORA", "HIRA"), "0.20"),
}


def tune(holder: nn.Module, kind: str, options: dict[str, Any]) -> nn.Module:
    """Let peft put the tuner `kind` (a peft.PeftType) around `holder.base`; returns peft's model of it.

    Everything is drawn on the CPU: peft mixes CPU generators with the default device. Raises RequestError.
    """
    import peft  # noqa: PLC0415 - imports transformers

    if kind not in peft.PeftType.__members__:
        needs = SINCE.get(kind, "newer than this")
        raise RequestError(f"{kind} needs peft {needs}, here is {peft.__version__}: pip install -U peft.")
    which = peft.PeftType[kind]
    with torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that options differ from peft's advice, or that CUDA kernels were not built
        make: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[which]
        config = make(target_modules=["base"], **options)
        model: nn.Module = peft.PEFT_TYPE_TO_TUNER_MAPPING[which](holder, {"default": config}, "default")
    return model


class HubShared(Shared):
    """What peft's tuner `kind` shares among sites, of which the largest has `rows` outputs and `columns` inputs.

    Drawn by peft itself, as its own model of the whole network would draw it.
    """

    def __init__(self, kind: str, rows: int, columns: int, **options: Any) -> None:  # noqa: ANN401 - peft types them
        super().__init__()
        holder = nn.Module()
        holder.base = nn.Linear(columns, rows, bias=False, device="cpu")
        for name, module in tune(holder, kind, options).named_children():
            if name != "model":
                self.add_module(name, module)
        self.to(torch.get_default_device())


class HubTuner(Graft):
    """One of Hugging Face peft's tuners around a Linear layer: `kind` is its PeftType, the sizes go to its config."""

    def __init__(
        self,
        base: nn.Module,
        kind: str,
        shared: HubShared | None = None,
        **options: Any,  # noqa: ANN401 - likewise
    ) -> None:
        super().__init__(base)
        weight = base.get_parameter("weight")
        tune(self, kind, options)
        for name, module in shared.named_children() if shared else ():
            setattr(self.base, name, module.to(weight.dtype))
        for held in vars(self.base).values():  # peft keeps positions outside of its buffers
            if isinstance(held, dict) and isinstance(held.get("default"), Tensor):
                held["default"] = held["default"].to(weight.device)

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
