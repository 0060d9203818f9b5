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
        **options: Any,  # noqa: ANN401 - peft types them
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
        if isinstance(layer.base_layer, Third):
            layer.base_layer = layer.base_layer.copied()
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


class Third(nn.Linear):
    """The queries, keys or values of a fused qkv layer, as a Linear layer without tensors of its own."""

    def __init__(self, fused: nn.Module, part: str) -> None:
        nn.Module.__init__(self)  # not Linear's, which makes tensors
        outputs, self.in_features = fused.get_parameter("weight").shape
        self.out_features = outputs // 3
        self.fused = (fused,)  # a tuple, so that the layer is no submodule
        self.rows = slice("qkv".index(part) * self.out_features, ("qkv".index(part) + 1) * self.out_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # read from the fused layer in every pass
        """The rows of the fused weight, (out / 3, in)."""
        return self.fused[0].get_parameter("weight")[self.rows]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # read from the fused layer in every pass
        """The part of the fused bias, if there is one."""
        fused: Any = self.fused[0]
        return None if fused.bias is None else fused.bias[self.rows]

    def copied(self) -> nn.Linear:
        """Return a Linear layer with copies of the values."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        layer.load_state_dict(
            {n: t.detach().clone() for n in ("weight", "bias") if (t := getattr(self, n)) is not None}, assign=True
        )
        return layer


class LoRAThirds(Graft):
    """peft's LoRA around some of the parts q, k and v of a fused layer, each with its own factors."""

    def __init__(self, base: nn.Module, parts: str, **options: Any) -> None:  # noqa: ANN401 - peft types them
        """`parts`: some letters of qkv; `options` are passed to LoraConfig."""
        super().__init__(base)
        thirds = {part: Third(base, part) for part in parts}
        self.tuners = nn.ModuleDict(
            {part: HubTuner(third.copied(), "LORA", **options) for part, third in thirds.items()}
        )
        for part, third in thirds.items():
            self.get_submodule(f"tuners.{part}.base").base_layer = third  # peft needs a layer with tensors until here

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401
        """Return r (in + out / 3) for each part, plus out / 3 magnitudes with DoRA."""
        rows, columns = base.get_parameter("weight").shape
        each = int(sizes["r"]) * (rows // 3 + columns) + (rows // 3 if sizes.get("use_dora") else 0)
        return len(sizes["parts"]) * each

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        thirds = {part: self.tuners[part] if part in self.tuners else Third(self.base, part) for part in "qkv"}
        return torch.cat([third(x) for third in thirds.values()], dim=-1)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the fused layer with the updates in its weight."""
        layer = deepcopy(self.base)
        for part, tuner in self.tuners.items():
            plain = tuner.merged() if isinstance(tuner, HubTuner) else tuner
            layer.get_parameter("weight")[Third(layer, part).rows] = plain.get_parameter("weight")
        return layer
