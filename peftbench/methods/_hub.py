"""What the methods that Hugging Face peft computes have in common.

peft does the work, one tuner around each chosen Linear layer; here are the sites, the count and the budget. Of what
peft offers besides, `UNFIT` says why it is no method here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._sites import PROJECTIONS, blocks, matrix
from peftbench.models.method import Fit, Method, edge
from peftbench.models.peft_tuners import HubShared, HubTuner
from peftbench.models.plan import Graft, Plan, Probe, Sizes

UNFIT: Mapping[str, str] = MappingProxyType(
    {  # peft.PeftType -> why
        **dict.fromkeys(
            ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT"),
            "virtual tokens before a language model's text; a vision transformer has vpt_shallow and vpt_deep",
        ),
        **dict.fromkeys(("PREFIX_TUNING", "CARTRIDGE"), "writes a language model's cache of keys and values"),
        "ADAPTION_PROMPT": "rewrites the attention of LLaMA's modules",
        "TRAINABLE_TOKENS": "rows of a vocabulary's embedding, which images have not",
        "LN_TUNING": "is ft_ln here",
        "POLY": "mixes adapters by the number of the task; there is one task here",
        "XLORA": "mixes LoRAs that were trained before",
        "SHADOW": "a second, smaller language model that runs beside the first",
        "LILY": "neighbouring layers share its matrices inside peft's model of a whole network; it cannot merge",
        "UNILORA": "its projection is scaled by how often the whole network uses a value, known to peft's model only",
        "FROD": "decomposes all layers jointly inside peft's model of a whole network",
        "ADAMSS": "keeps each frozen weight once more and outside of buffers, where no move finds it",
        "BEFT": "one more bias beside that of a layer, which bitfit trains",
        "SUPERTUNING": "the largest weights of a layer, which shpeft trains with td = none",
        "OSF": "keeps most of each weight's decomposition in buffers, so that a delta is as large as the backbone",
    }
)

POSITIVE = ("alpha", "cells", "d", "every", "group", "length", "r", "scale", "top")  # options of whichever method
NOT_NEGATIVE = ("depth", "pull")


@dataclass(frozen=True)
class HubMethod(Method):
    """A tuner of peft around chosen projections of every block."""

    kind: ClassVar[str]  # its name in peft.PeftType
    rising: ClassVar[bool] = True  # each size of the knob counts more than the one before it

    sites: tuple[str, ...] = ("qkv",)

    def __post_init__(self) -> None:
        if strange := [site for site in self.sites if site not in PROJECTIONS] or ([] if self.sites else ["nothing"]):
            known = ", ".join(PROJECTIONS)
            raise RequestError(f"{self.name}: sites = {strange[0]!r} will not do: there are {known}; join them with +.")
        if len(set(self.sites)) < len(self.sites):
            raise RequestError(f"{self.name}: sites = {'+'.join(self.sites)} will not do: each may stand there once.")
        if self.knob and getattr(self, self.knob) < 1:
            raise RequestError(f"{self.name}: {self.knob} = {getattr(self, self.knob)} will not do: it is at least 1.")
        for name in (*POSITIVE, *NOT_NEGATIVE):
            value = getattr(self, name, 1)
            if not 0 <= value < math.inf or (value == 0 and name in POSITIVE):
                bound = "above 0" if name in POSITIVE else "a number and not negative"
                raise RequestError(f"{self.name}: {name} = {value} will not do: it is {bound}.")

    @property
    def name(self) -> str:
        """The plug-in's: its file's stem."""
        return type(self).__module__.rpartition(".")[2]

    def options(self) -> Sizes:
        """What peft's config gets beside its defaults."""
        return {}

    def trained(self, rows: int, columns: int) -> int:
        """Trainable parameters of a site with `rows` outputs and `columns` inputs."""
        raise NotImplementedError

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """What to put around a projection that is called `site` in PROJECTIONS."""
        return HubTuner, {"kind": self.kind, **self.options()}

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A tuner around every chosen projection of every block."""
        self.refuse_misfit(vit)
        return Plan(grafts={f"{block}.{PROJECTIONS[s]}": self.graft(s) for block in blocks(vit) for s in self.sites})

    def refuse_misfit(self, vit: nn.Module) -> None:
        """Raises RequestError when the knob stands where this network has no such size."""
        if self.knob and (value := getattr(self, self.knob)) not in (sizes := self.sizes(vit)):
            legal = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 20 else ", ".join(map(str, sizes))  # noqa: PLR2004
            raise RequestError(f"{self.name}: {self.knob} = {value} will not do for these projections: {legal}.")

    def shapes(self, vit: nn.Module) -> Counter[tuple[int, int]]:
        """How many sites have so many outputs and inputs."""
        names = (f"{block}.{PROJECTIONS[site]}" for block in blocks(vit) for site in self.sites)
        return Counter((w.shape[0], w.shape[1]) for w in (matrix(vit, name) for name in names))

    def total(self, shapes: Counter[tuple[int, int]]) -> int:
        """Trainable parameters of all sites and of what they share."""
        return sum(many * self.trained(rows, columns) for (rows, columns), many in shapes.items())

    def count(self, vit: nn.Module) -> int:
        """By formula: peft need not be imported. Raises RequestError as `plan` does."""
        self.refuse_misfit(vit)
        return self.total(self.shapes(vit))

    def within(self, budget: int, vit: nn.Module) -> Fit:
        """The legal size whose count is nearest, ties to the smaller."""
        shapes, sizes = self.shapes(vit), self.sizes(vit)

        def counted(value: float) -> int:
            return self.turned(value).total(shapes)

        near: Sequence[float] = sizes
        if self.rising:  # halves the list instead of trying all of it
            place = bisect_left(sizes, budget, key=counted)
            near = [sizes[0], *sizes[max(0, place - 1) : place + 1], sizes[-1]]
        options = [(counted(value), value) for value in near]
        reached, value = min(options, key=lambda option: (abs(option[0] - budget), option[0]))
        return Fit(self.turned(value), reached, edge(budget, [count for count, _ in options]))


@dataclass(frozen=True)
class LowRank(HubMethod):
    """One whose knob is a rank."""

    knob: ClassVar[str | None] = "r"

    r: int = 8

    def options(self) -> Sizes:
        """The rank."""
        return {"r": self.r}

    def trained(self, rows: int, columns: int) -> int:
        """Two factors, as in LoRA."""
        return self.r * (rows + columns)

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Every rank that a site can have."""
        return range(1, min(map(min, self.shapes(vit))) + 1)


@dataclass(frozen=True)
class SharedHub(LowRank):
    """One whose sites share tensors, which peft draws for the largest of them."""

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """The tuner, with what is shared."""
        return HubTuner, {"kind": self.kind, "shared": self.name, **self.options()}

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A tuner around every chosen projection, and what they share."""
        plan, shapes = super().plan(vit, probe), self.shapes(vit)
        largest = {"rows": max(rows for rows, _ in shapes), "columns": max(columns for _, columns in shapes)}
        return Plan(
            grafts=plan.grafts, shared={self.name: (HubShared, {"kind": self.kind, **largest, **self.options()})}
        )


def divisors(number: int, least: int = 1) -> list[int]:
    """Those of `number` that are not below `least`, ascending."""
    return [d for d in range(least, number + 1) if number % d == 0]


def common(shapes: Mapping[tuple[int, int], Any], side: int | None = None) -> int:
    """The greatest number that divides all outputs (side 0), all inputs (side 1) or all of both (None)."""
    return gcd(*(size for shape in shapes for size in (shape if side is None else (shape[side],))))
