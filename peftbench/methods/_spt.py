"""How SPT spends a budget: the most sensitive weights, grouped where a tensor holds enough of them.

The authors' network has q, k and v in layers of their own, timm's in one: here each third of it is a piece that is
decided on its own. Cutting happens in `pieces`; the rest knows pieces only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftbench.models.top_k import leaders

NEVER = ("cls_token", "reg_token", "pos_embed", "patch_embed.", "attn_pool.")  # these train always or never
PARTS = "qkv"


@dataclass(frozen=True)
class Piece:
    """A tensor, or the third of one that makes queries, keys or values."""

    name: str  # of the tensor
    shape: tuple[int, ...]
    part: str = ""  # q, k or v

    @property
    def size(self) -> int:
        """Entries."""
        return math.prod(self.shape)

    @property
    def start(self) -> int:
        """Its first entry's place in the flat tensor."""
        return PARTS.index(self.part) * self.size if self.part else 0

    def of(self, tensor: Tensor) -> Tensor:
        """Its flat entries."""
        return tensor.flatten()[self.start : self.start + self.size]


def pieces(vit: nn.Module) -> list[Piece]:
    """What competes, in the authors' order: the tensors of the blocks and the norms around them."""
    named = {name: tuple(p.shape) for name, p in vit.named_parameters() if not name.startswith(NEVER)}
    return [piece for name, shape in named.items() for piece in _cut(name, shape, named)]


def _cut(name: str, shape: tuple[int, ...], named: dict[str, tuple[int, ...]]) -> Iterator[Piece]:
    """One piece; of a fused projection six at its weight: weight and bias of q, of k, of v; and none at its bias."""
    site, _, leaf = name.rpartition(".")
    if not site.endswith(".qkv"):
        yield Piece(name, shape)
    elif leaf == "weight":
        for part in PARTS:
            for tensor in (name, f"{site}.bias"):
                if tensor in named:
                    yield Piece(tensor, (named[tensor][0] // 3, *named[tensor][1:]), part)


@dataclass(frozen=True)
class Rule:
    """When a tensor is trained as a whole."""

    r: int
    alpha: float
    beta: float

    def whole(self, piece: Piece, chosen: int) -> bool:
        """Whether a vector trains entirely or a matrix gets a product of rank r, `chosen` of its entries being in."""
        if len(piece.shape) == 1:
            return chosen * self.beta >= piece.size
        return chosen * self.alpha >= self.cost(piece)

    def cost(self, piece: Piece) -> int:
        """What a whole piece trains: r (in + out) of a matrix, all of a vector."""
        return piece.size if len(piece.shape) == 1 else self.r * sum(piece.shape)

    def spent(self, among: Sequence[Piece], chosen: Sequence[int]) -> int:
        """Parameters of all pieces, so many of their entries being in."""
        return sum(self.cost(p) if self.whole(p, c) else c for p, c in zip(among, chosen, strict=True))


@dataclass(frozen=True)
class Ranking:
    """The leading candidates, the most sensitive first, sorted once for every size of a sweep."""

    index: Tensor  # places in all pieces behind one another
    ends: Tensor  # where each piece ends there

    def counts(self, k: int) -> list[int]:
        """How many of the first k lie in each piece."""
        found: list[int] = torch.bincount(self._piece(self.index[:k]), minlength=len(self.ends)).tolist()
        return found

    def entries(self, k: int) -> list[Tensor]:
        """The ascending places of the first k in each piece."""
        index = self.index[:k].sort().values
        parts = index.split(self.counts(k))
        starts = [0, *self.ends[:-1].tolist()]
        return [part - start for part, start in zip(parts, starts, strict=True)]

    def _piece(self, index: Tensor) -> Tensor:
        return torch.searchsorted(self.ends, index, right=True)


def rank(among: Sequence[Piece], sensitivities: Iterable[Tensor], k: int) -> Ranking:
    """The k most sensitive entries (all where there are fewer); ties to the earlier piece and the lower index."""
    sizes = [piece.size for piece in among]
    named = ((str(number), scores) for number, scores in enumerate(sensitivities))
    index, values, _ = leaders(named, min(k, sum(sizes)))
    order = values.argsort(descending=True, stable=True)
    return Ranking(index[order], torch.tensor(sizes).cumsum(0))


def steps(unit: float) -> list[int]:
    """How many sensitive weights the authors try: 2%, 4%, ... 158% of a million."""
    return [math.ceil(0.02 * i * unit) for i in range(1, 80)]


def unit(budget: int) -> float:
    """A million as in the authors' sweep; beyond their budgets of 0.05 to 1.0 million, the budget."""
    return 1e6 if 50_000 <= budget <= 1_000_000 else budget  # noqa: PLR2004 - the authors' least and largest


def nearest(totals: Sequence[int], budget: float) -> int:
    """Which of the totals is nearest to the budget, ties to the later one."""
    return min(range(len(totals)), key=lambda i: (abs(totals[i] - budget), -i))
