"""SPT-LoRA: low-rank changes where many weights are sensitive, single weights elsewhere (He et al., ICCV 2023)."""

from __future__ import annotations

import math
from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.errors import RequestError
from peftbench.methods import _spt
from peftbench.methods._spt import PARTS, Piece, Ranking, Rule
from peftbench.models import top_k
from peftbench.models.method import Fit, Method, edge
from peftbench.models.plan import Graft, Plan, Probe, Sizes


class LowRank(Graft):
    """y + B A x, on all of a projection's outputs or on its thirds q, k, v, each with factors of its own."""

    def __init__(self, base: nn.Module, r: int, parts: str, init: str, dropout: float, drop_path: float) -> None:
        """`parts`: some letters of qkv, or "" for a projection that is not fused."""
        super().__init__(base)
        rows, columns = base.get_parameter("weight").shape
        self.parts, rows = parts or "y", rows // (3 if parts else 1)
        self.down = nn.ParameterDict({part: nn.Parameter(torch.empty(r, columns)) for part in self.parts})
        self.up = nn.ParameterDict({part: nn.Parameter(torch.zeros(rows, r)) for part in self.parts})
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)
        for part in self.parts:
            if init == "zero":
                nn.init.kaiming_uniform_(self.down[part], a=math.sqrt(5))
            else:  # the authors' network initialises every Linear anew when it is built, these two among them
                nn.init.trunc_normal_(self.down[part], std=0.02)
                nn.init.trunc_normal_(self.up[part], std=0.02)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """r (in + out) a part."""
        rows, columns = base.get_parameter("weight").shape
        parts = len(sizes["parts"])
        return int(sizes["r"]) * (max(1, parts) * columns + (parts * rows // 3 or rows))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y, seen = self.base(x), self.dropout(x)
        out: Tensor = y + self._spread(
            {p: self.drop_path(F.linear(F.linear(seen, self.down[p]), self.up[p])) for p in self.parts}
        )
        return out

    def _spread(self, changes: dict[str, Tensor]) -> Tensor:
        """The thirds side by side, zeros for those that do not change."""
        if "y" in changes:
            return changes["y"]
        like = next(iter(changes.values()))
        return torch.cat([changes.get(part, torch.zeros_like(like)) for part in PARTS], dim=-1)

    def merged(self) -> nn.Module:
        """W' = W + B A."""
        plain = deepcopy(self.base)
        with torch.no_grad():
            changes = {part: (self.up[part] @ self.down[part]).T for part in self.parts}
            plain.get_parameter("weight").add_(self._spread(changes).T)
        return plain


@dataclass(frozen=True)
class SPTLoRA(Method):
    """The budget's most sensitive weights; a matrix that holds many of them gets B A instead, a vector trains whole.

    How large that comes out depends on the data: the count nearest to the budget among those of the authors' sweep.
    """

    knob: ClassVar[str | None] = "budget"
    exact: ClassVar[bool] = False
    identity: ClassVar[bool] = False  # the authors' up-projections do not start at zero

    budget: float = 0.005  # share of the backbone's weights to aim at
    r: int = 8
    alpha: float = 10.0  # a matrix gets B A from r (in + out) / alpha sensitive weights on; 1: the paper's prose
    beta: float = 5.0  # a vector trains whole from a share of 1 / beta on; 0: never
    init: Literal["official", "zero"] = "official"
    batches: int = 16  # of train, for the sensitivity
    dropout: float = 0.1  # on what q, k, v, fc1 and fc2 see, not proj
    drop_path: float = 0.1  # on B A x

    def __post_init__(self) -> None:
        limits = {
            "budget": (0 < self.budget <= 1, "it lies above 0 and at most at 1"),
            "r": (self.r >= 1, "the rank is at least 1"),
            "alpha": (1 <= self.alpha < math.inf, "it is at least 1"),
            "beta": (0 <= self.beta < math.inf, "it is not negative"),
            "batches": (self.batches >= 1, "it is at least 1"),
            "dropout": (0 <= self.dropout < 1, "it lies in [0, 1)"),
            "drop_path": (0 <= self.drop_path < 1, "it lies in [0, 1)"),
        }
        for name, (good, rule) in limits.items():
            if not good:
                raise RequestError(f"spt_lora: {name} = {getattr(self, name)} will not do: {rule}.")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """The class token, and what the nearest step of the sweep chooses."""
        among, rule, budget = _spt.pieces(vit), Rule(self.r, self.alpha, self.beta), self.count(vit)
        even, odd = probe.estimate("squares", self.batches)
        tries = _spt.steps(_spt.unit(budget))
        ranking = _spt.rank(among, (p.of(even[p.name]).double() + p.of(odd[p.name]) for p in among), tries[-1])
        always = _always(vit)
        totals = [sum(always.values()) + rule.spent(among, ranking.counts(k)) for k in tries]
        return self._carried(set(always), among, rule, ranking, tries[_spt.nearest(totals, budget)])

    def _carried(self, tune: set[str], among: list[Piece], rule: Rule, ranking: Ranking, k: int) -> Plan:
        """The plan of the k most sensitive weights, and of what trains whole anyway."""
        single, products = defaultdict[str, list[Tensor]](list), defaultdict[str, str](str)
        facts = {"spt_matrices": 0.0, "spt_vectors": 0.0, "spt_entries": 0.0}
        for piece, chosen in zip(among, ranking.entries(k), strict=True):
            site = piece.name.rpartition(".")[0]
            whole = rule.whole(piece, len(chosen))
            if whole and len(piece.shape) > 1:
                products[site] += piece.part
                facts["spt_matrices"] += 1
            elif whole:
                if piece.part:
                    single[piece.name].append(torch.arange(piece.size) + piece.start)
                else:
                    tune.add(piece.name)
                facts["spt_vectors"] += 1
            elif len(chosen) and "norm" not in site:  # the authors count single entries of norms but never train them
                single[piece.name].append(chosen + piece.start)
                facts["spt_entries"] += len(chosen)
        return Plan(
            tune=frozenset(tune),
            entries={name: torch.cat(parts).sort().values for name, parts in single.items()},
            grafts={site: (LowRank, self._sizes(site, parts)) for site, parts in products.items()},
            decay_entries=False,
            facts=facts,
        )

    def _sizes(self, site: str, parts: str) -> Sizes:
        dropout = 0.0 if site.endswith("proj") else self.dropout
        return {"r": self.r, "parts": parts, "init": self.init, "dropout": dropout, "drop_path": self.drop_path}

    def count(self, vit: nn.Module) -> int:
        """What to aim at; what it comes to depends on the data."""
        return self.within(round(self.budget * top_k.total(vit)), vit).reached

    def within(self, budget: int, vit: nn.Module) -> Fit:
        """The budget itself, from the class token and one weight up to everything whole."""
        rule, always = Rule(self.r, self.alpha, self.beta), sum(_always(vit).values())
        least, most = always + 1, always + sum(rule.cost(piece) for piece in _spt.pieces(vit))
        reached = min(max(budget, least), most)
        aimed = replace(self, budget=top_k.share(reached, top_k.total(vit)))
        return Fit(aimed, reached, edge(budget, (least, most)))


def _always(vit: nn.Module) -> dict[str, int]:
    """What trains whatever its sensitivity, and its size: the class token, where there is one."""
    return {name: p.numel() for name, p in vit.named_parameters() if name == "cls_token"}


plugin = SPTLoRA
