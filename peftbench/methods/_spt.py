"""How SPT spends a budget: on the most sensitive weights, as whole matrices or vectors where a tensor has enough.

The authors' network has q, k and v in separate layers, timm's in one: here each third of it is a piece that is decided
separately. `pieces` divides the tensors; everything else works on pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftbench.models.tensor_names import EMBEDDINGS
from peftbench.models.top_k import largest_flat

NEVER = (*EMBEDDINGS, "attn_pool.")  # these train always or never; the norm before the blocks is a candidate
PARTS = "qkv"


@dataclass(frozen=True)
class Piece:
    """A tensor, or the third of a fused one that computes queries, keys or values."""

    name: str  # of the tensor
    shape: tuple[int, ...]
    part: str = ""  # q, k or v

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def start(self) -> int:
        """Index of its first entry in the flat tensor."""
        return PARTS.index(self.part) * self.size if self.part else 0

    def of(self, tensor: Tensor) -> Tensor:
        """Return its entries of the tensor, flat."""
        return tensor.flatten()[self.start : self.start + self.size]


def pieces(vit: nn.Module) -> list[Piece]:
    """Return all candidates in the authors' order: the tensors of the blocks and the norms around them."""
    named = {name: tuple(p.shape) for name, p in vit.named_parameters() if not name.startswith(NEVER)}
    return [piece for name, shape in named.items() for piece in _divide(name, shape, named)]


def _divide(name: str, shape: tuple[int, ...], named: dict[str, tuple[int, ...]]) -> Iterator[Piece]:
    """Yield one piece; for a fused weight six (weight and bias of q, of k, of v), and none for a fused bias."""
    site, _, leaf = name.rpartition(".")
    if not site.endswith(".qkv"):
        yield Piece(name, shape)
    elif leaf == "weight":
        for part in PARTS:
            for tensor in (name, f"{site}.bias"):
                if tensor in named:
                    yield Piece(tensor, (named[tensor][0] // 3, *named[tensor][1:]), part)


@dataclass(frozen=True)
class WholeRule:
    """When a piece trains as a whole."""

    r: int
    alpha: float
    beta: float

    def whole(self, piece: Piece, selected: int) -> bool:
        """Return whether a vector trains whole, or a matrix by a product of rank r, given its selected entries."""
        if len(piece.shape) == 1:
            return selected * self.beta >= piece.size
        return selected * self.alpha >= self.cost(piece)

    def cost(self, piece: Piece) -> int:
        """Return the trainable parameters of a whole piece: r (in + out) of a matrix, all entries of a vector."""
        return piece.size if len(piece.shape) == 1 else self.r * sum(piece.shape)

    def spent(self, among: Sequence[Piece], selected: Sequence[int]) -> int:
        """Return the trainable parameters of all pieces, given the number of selected entries of each."""
        return sum(self.cost(p) if self.whole(p, c) else c for p, c in zip(among, selected, strict=True))


@dataclass(frozen=True)
class Ranking:
    """The most sensitive entries, sorted once for all sizes of a sweep."""

    index: Tensor  # positions in the concatenation of all pieces, the most sensitive first
    ends: Tensor  # position at which each piece ends

    def counts(self, k: int) -> list[int]:
        """Return how many of the first k lie in each piece."""
        found: list[int] = torch.bincount(self._piece(self.index[:k]), minlength=len(self.ends)).tolist()
        return found

    def entries(self, k: int) -> list[Tensor]:
        """Return the ascending indices of the first k in each piece."""
        index = self.index[:k].sort().values
        parts = index.split(self.counts(k))
        starts = [0, *self.ends[:-1].tolist()]
        return [part - start for part, start in zip(parts, starts, strict=True)]

    def _piece(self, index: Tensor) -> Tensor:
        return torch.searchsorted(self.ends, index, right=True)


def rank(among: Sequence[Piece], sensitivities: Iterable[Tensor], k: int) -> Ranking:
    """Return the k most sensitive entries (all if there are fewer); ties to the earlier piece and the lower index."""
    sizes = [piece.size for piece in among]
    named = ((str(number), scores) for number, scores in enumerate(sensitivities))
    index, values, _ = largest_flat(named, min(k, sum(sizes)))
    order = values.argsort(descending=True, stable=True)
    return Ranking(index[order], torch.tensor(sizes).cumsum(0))


def steps(unit: float) -> list[int]:
    """Return the numbers of sensitive weights that the authors try: 2%, 4%, ... 158% of `unit`."""
    return [math.ceil(0.02 * i * unit) for i in range(1, 80)]


def unit(budget: int) -> float:
    """Return a million, as in the authors' sweep, or the budget outside of their budgets of 0.05 to 1.0 million."""
    return 1e6 if 50_000 <= budget <= 1_000_000 else budget  # noqa: PLR2004 - the authors' least and largest


def nearest(totals: Sequence[int], budget: float) -> int:
    """Return the index of the total that is nearest to the budget, ties to the later one."""
    return min(range(len(totals)), key=lambda i: (abs(totals[i] - budget), -i))
