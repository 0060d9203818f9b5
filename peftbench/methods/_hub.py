"""Base classes of the methods that Hugging Face peft computes.

peft provides one tuner around each chosen Linear layer; this module adds the choice of layers, the count and the
search for a budget. `UNFIT` lists peft's other methods and why they are not offered.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from math import gcd
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from peftbench.core.fields import AtLeast1, Positive, checked
from peftbench.errors import RequestError
from peftbench.methods._fields import LoRASites, Seed, Sites, Size
from peftbench.methods._sites import ALIASES, blocks, matrix, thirds
from peftbench.models.method import Match, Method, nearest
from peftbench.models.peft_tuners import HubShared, HubTuner, LoRAThirds
from peftbench.models.plan import Graft, Plan, Probe, Sizes
from peftbench.models.tensor_names import PROJECTIONS

UNFIT: Mapping[str, str] = MappingProxyType(
    {  # peft.PeftType -> why
        **dict.fromkeys(
            ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT"),
            "virtual tokens before a language model's text; a vision transformer has vpt_shallow and vpt_deep",
        ),
        **dict.fromkeys(("PREFIX_TUNING", "CARTRIDGE"), "writes a language model's cache of keys and values"),
        "ADAPTION_PROMPT": "rewrites the attention of LLaMA's modules",
        "TRAINABLE_TOKENS": "rows of a vocabulary's embedding, which images do not have",
        "LN_TUNING": "is ft_ln here",
        "POLY": "mixes adapters by the number of the task; there is one task here",
        "XLORA": "mixes LoRAs that were trained before",
        "SHADOW": "a second, smaller language model that runs in parallel to the first",
        "LILY": "neighboring layers share its matrices inside peft's model of a whole network; it cannot merge",
        "UNILORA": "its projection is scaled by how often the whole network uses a value, known to peft's model only",
        "FROD": "decomposes all layers jointly inside peft's model of a whole network",
        "ADAMSS": "keeps a copy of each frozen weight outside of buffers, so moving the module does not move it",
        "BEFT": "one more bias beside that of a layer, which bitfit trains",
        "SUPERTUNING": "the largest weights of a layer, which shpeft trains with td = none",
        "OSF": "keeps most of each weight's decomposition in buffers, so a delta is as large as the backbone",
    }
)
LISTED = 20  # legal sizes in an error; a longer list is given as a range


@checked
class HubMethod(Method):
    """A tuner of peft around chosen projections of every block."""

    kind: ClassVar[str]  # its name in peft.PeftType
    aliases: ClassVar[Mapping[str, str]] = ALIASES
    rising: ClassVar[bool] = True  # the count grows with the knob

    sites: Sites = ("qkv",)

    @property
    def name(self) -> str:
        """The name of the plug-in: its module's."""
        return type(self).__module__.rpartition(".")[2]

    def options(self) -> Sizes:
        """Return the arguments of peft's config that differ from its defaults."""
        return {}

    def trained(self, rows: int, columns: int) -> int:
        """Return the trainable parameters of a layer with `rows` outputs and `columns` inputs."""
        raise NotImplementedError

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Return the adapter for the projection that PROJECTIONS calls `site`."""
        return HubTuner, {"kind": self.kind, **self.options()}

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every chosen projection of every block."""
        self.refuse_misfit(vit)
        return Plan(grafts={f"{block}.{layer}": one for block in blocks(vit) for layer, one in self.adapters().items()})

    def adapters(self) -> dict[str, tuple[type[Graft], Sizes]]:
        """Return the adapter for every chosen layer of a block."""
        return {PROJECTIONS[site]: self.graft(site) for site in self.sites}

    def refuse_misfit(self, vit: nn.Module) -> None:
        """Raise RequestError if this network does not allow the value of the knob."""
        if self.knob and (value := getattr(self, self.knob)) not in (sizes := self.sizes(vit)):
            legal = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > LISTED else ", ".join(map(str, sizes))
            raise RequestError(f"{self.name}: {self.knob} must be one of {legal} for these projections, got {value}.")

    def shapes(self, vit: nn.Module) -> Counter[tuple[int, int]]:
        """Return the shapes (out, in) of the chosen layers and how many layers have each."""
        names = (f"{block}.{PROJECTIONS[site]}" for block in blocks(vit) for site in self.sites)
        return Counter((w.shape[0], w.shape[1]) for w in (matrix(vit, name) for name in names))

    def total(self, shapes: Counter[tuple[int, int]]) -> int:
        """Return the trainable parameters of all layers, including what they share."""
        return sum(many * self.trained(rows, columns) for (rows, columns), many in shapes.items())

    def count(self, vit: nn.Module) -> int:
        """Return the count by formula, without importing peft. Raises RequestError as `plan` does."""
        self.refuse_misfit(vit)
        return self.total(self.shapes(vit))

    def within(self, budget: int, vit: nn.Module) -> Match:
        """Return the legal size whose count is nearest to `budget`, ties to the smaller."""
        shapes, sizes = self.shapes(vit), self.sizes(vit)

        def counted(value: float) -> int:
            return self.at_size(value).total(shapes)

        near: Sequence[float] = sizes
        if self.rising:  # a binary search instead of a scan
            place = bisect_left(sizes, budget, key=counted)
            near = [sizes[0], *sizes[max(0, place - 1) : place + 1], sizes[-1]]
        return nearest(self, budget, {value: counted(value) for value in near})


@checked
class LowRankMethod(HubMethod):
    """A method whose knob is a rank."""

    knob: ClassVar[str | None] = "r"

    r: Size = 8

    def options(self) -> Sizes:
        """Return the rank."""
        return {"r": self.r}

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of two factors, as in LoRA."""
        return self.r * (rows + columns)

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return every rank that all layers can have."""
        return range(1, min(map(min, self.shapes(vit))) + 1)


@checked
class LoRAVariant(LowRankMethod):
    """A variant of LoRA: an option of peft's LoraConfig."""

    kind: ClassVar[str] = "LORA"

    alpha: AtLeast1 = 8
    sites: LoRASites = ("qkv",)  # type: ignore[assignment]  # q, k, v: parts of the fused qkv, each with its own A

    def adapters(self) -> dict[str, tuple[type[Graft], Sizes]]:
        """Return the adapter for every chosen layer of a block, one for all parts of the fused qkv."""
        whole = {PROJECTIONS[site]: self.graft(site) for site in self.sites if site in PROJECTIONS}
        parts = thirds(self.sites)
        return whole | ({PROJECTIONS["qkv"]: (LoRAThirds, {"parts": parts, **self.options()})} if parts else {})

    def shapes(self, vit: nn.Module) -> Counter[tuple[int, int]]:
        """Return the shapes (out, in) of the chosen layers and parts, and how many there are of each."""
        weights = [matrix(vit, f"{b}.{PROJECTIONS.get(s, 'attn.qkv')}") for b in blocks(vit) for s in self.sites]
        parts = [1 if site in PROJECTIONS else 3 for _ in blocks(vit) for site in self.sites]
        return Counter((w.shape[0] // part, w.shape[1]) for w, part in zip(weights, parts, strict=True))


@checked
class SharedHub(LowRankMethod):
    """A method whose layers share tensors; peft draws them for the largest layer."""

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Return the tuner with the name of the shared module."""
        return HubTuner, {"kind": self.kind, "shared": self.name, **self.options()}

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every chosen projection and add the shared tensors."""
        plan, shapes = super().plan(vit, probe), self.shapes(vit)
        largest = {"rows": max(rows for rows, _ in shapes), "columns": max(columns for _, columns in shapes)}
        return Plan(
            grafts=plan.grafts, shared={self.name: (HubShared, {"kind": self.kind, **largest, **self.options()})}
        )


@checked
class RotatedBlocks(HubMethod):
    """A method that rotates blocks of a layer's inputs; its knob is the block size."""

    knob: ClassVar[str | None] = "block"

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return the divisors from 2 of the inputs of every layer."""
        return divisors(common_divisor(self.shapes(vit), side=1), least=2)


@checked
class Coefficients(HubMethod):
    """A method that trains `n` coefficients of each layer's update in another basis."""

    knob: ClassVar[str | None] = "n"
    tuner: ClassVar[type[HubTuner]]

    n: AtLeast1 = 1000  # coefficients per layer
    scale: Positive = 1.0  # of a coefficient, for 768 x 768 weights
    key: Seed = 777  # of the coefficients' random positions

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Return the method's own adapter around peft's tuner."""
        return self.tuner, {"n": self.n, "scale": self.scale, "key": self.key}

    def trained(self, rows: int, columns: int) -> int:
        """Return the number of coefficients."""
        return self.n

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return 1 to the number of weights of the smallest layer."""
        return range(1, min(rows * columns for rows, columns in self.shapes(vit)) + 1)


def divisors(number: int, least: int = 1) -> list[int]:
    """Return the divisors of `number` from `least`, ascending."""
    return [d for d in range(least, number + 1) if number % d == 0]


def common_divisor(shapes: Mapping[tuple[int, int], Any], side: int | None = None) -> int:
    """Return the greatest common divisor of all outputs (side 0), all inputs (side 1) or both (None)."""
    return gcd(*(size for shape in shapes for size in (shape if side is None else (shape[side],))))
