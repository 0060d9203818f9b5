"""SPT-LoRA: low-rank updates where many weights are sensitive, single weights elsewhere (He et al., ICCV 2023)."""

from __future__ import annotations

import math
from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import AtLeast1, Fraction, NotNegative, Share, checked
from peftbench.methods import _spt
from peftbench.methods._fields import Size
from peftbench.methods._spt import PARTS, Piece, Ranking, WholeRule
from peftbench.models import top_k
from peftbench.models.method import Match, Method, edge
from peftbench.models.plan import Graft, Plan, Probe, Sizes


class LowRank(Graft):
    """y + B A x, on all outputs of a projection or on some of its thirds q, k, v, each with its own factors."""

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
            else:  # the authors' network initializes every Linear, these two included, after it was built
                nn.init.trunc_normal_(self.down[part], std=0.02)
                nn.init.trunc_normal_(self.up[part], std=0.02)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return r (in + out) for each part."""
        rows, columns = base.get_parameter("weight").shape
        parts = len(sizes["parts"])
        return int(sizes["r"]) * (max(1, parts) * columns + (parts * rows // 3 or rows))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y, seen = self.base(x), self.dropout(x)
        out: Tensor = y + self._concatenate(
            {p: self.drop_path(F.linear(F.linear(seen, self.down[p]), self.up[p])) for p in self.parts}
        )
        return out

    def _concatenate(self, changes: dict[str, Tensor]) -> Tensor:
        """Concatenate the thirds, with zeros for those without an update."""
        if "y" in changes:
            return changes["y"]
        like = next(iter(changes.values()))
        return torch.cat([changes.get(part, torch.zeros_like(like)) for part in PARTS], dim=-1)

    def merged(self) -> nn.Module:
        """Return a layer with W' = W + B A."""
        plain = deepcopy(self.base)
        with torch.no_grad():
            changes = {part: (self.up[part] @ self.down[part]).T for part in self.parts}
            plain.get_parameter("weight").add_(self._concatenate(changes).T)
        return plain


@checked
class SPTLoRA(Method):
    """The most sensitive weights within a budget; a matrix with many of them gets B A instead, a vector trains whole.

    The count depends on the data: the nearest to the budget among those of the authors' sweep.
    """

    knob: ClassVar[str | None] = "budget"
    exact: ClassVar[bool] = False
    identity: ClassVar[bool] = False  # the authors' up-projections do not start at zero

    budget: Share = 0.005  # target share of the backbone's weights
    r: Size = 8
    alpha: Annotated[float, Field(ge=1)] = 10.0  # B A from r (in + out) / alpha sensitive weights; 1: as in the paper
    beta: NotNegative = 5.0  # a vector trains whole if 1 / beta of it is sensitive; 0: never
    init: Literal["official", "zero"] = "official"
    batches: AtLeast1 = 16  # of the training part, for the sensitivity
    dropout: Fraction = 0.1  # on the inputs of q, k, v, fc1 and fc2, not proj
    drop_path: Fraction = 0.1  # on B A x

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select the class token and the weights of the sweep's step that is nearest to the budget."""
        among, rule, budget = _spt.pieces(vit), WholeRule(self.r, self.alpha, self.beta), self.count(vit)
        even, odd = probe.estimate("squares", self.batches)
        tries = _spt.steps(_spt.unit(budget))
        ranking = _spt.rank(among, (p.of(even[p.name]).double() + p.of(odd[p.name]) for p in among), tries[-1])
        always = _always(vit)
        totals = [sum(always.values()) + rule.spent(among, ranking.counts(k)) for k in tries]
        return self._planned(set(always), among, rule, ranking, tries[_spt.nearest(totals, budget)])

    def _planned(self, tune: set[str], among: list[Piece], rule: WholeRule, ranking: Ranking, k: int) -> Plan:
        """Return the plan of the k most sensitive weights and of the tensors `tune`."""
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
        """Return the target; what trains depends on the data."""
        return self.within(round(self.budget * top_k.backbone_size(vit)), vit).reached

    def within(self, budget: int, vit: nn.Module) -> Match:
        """Return the budget itself, limited to between the class token with one weight and everything whole."""
        rule, always = WholeRule(self.r, self.alpha, self.beta), sum(_always(vit).values())
        least, most = always + 1, always + sum(rule.cost(piece) for piece in _spt.pieces(vit))
        reached = min(max(budget, least), most)
        aimed = replace(self, budget=top_k.shortest_share(reached, top_k.backbone_size(vit)))
        return Match(aimed, reached, edge(budget, (least, most)))


def _always(vit: nn.Module) -> dict[str, int]:
    """Return the name and size of what always trains: the class token, if there is one."""
    return {name: p.numel() for name, p in vit.named_parameters() if name == "cls_token"}


plugin = SPTLoRA
