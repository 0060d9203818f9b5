"""Choosing single entries of a network's tensors by score, and naming how many as a share of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from peftbench.errors import JobError

ROOM = 1 << 20  # scores held beside the k largest so far, before the lesser ones are dropped


def largest(scores: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], k: int) -> dict[str, Tensor]:
    """The k largest scores over all tensors -> for each tensor that has any, the ascending flat indices of its own.

    Ties go to the earlier tensor and, within it, to the lower index. Scores may come as pairs, made one at a time, and
    a tensor's in several pieces: then no more than a piece and a few times k are held. Raises JobError if any score is
    not finite.
    """
    pairs: Iterable[Any] = scores.items() if isinstance(scores, Mapping) else scores
    index, _, sizes = leaders(pairs, k)
    return split(index, sizes)


def leaders(scores: Iterable[tuple[str, Tensor]], k: int) -> tuple[Tensor, Tensor, dict[str, int]]:
    """The k largest: their ascending indices over all tensors and their scores; and how large each tensor is."""
    sizes: dict[str, int] = {}
    held: list[tuple[Tensor, Tensor]] = []  # indices and scores of what may still be among the k largest
    count, seen, least = 0, 0, -torch.inf
    for name, score in scores:
        flat = _finite(score.flatten())
        new = (flat > least).nonzero().flatten()  # a tie with the least of k lies further back than all of them
        held.append((new + seen, flat[new]))
        sizes[name] = sizes.get(name, 0) + len(flat)
        count, seen = count + len(new), seen + len(flat)
        if count > k + max(k, ROOM):
            held, count = [_best(held, k)], k
            least = held[0][1].min().item()
    return *_best(held, k), sizes


def _best(held: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    index, values = (torch.cat(parts) for parts in zip(*held, strict=True))
    kept = top(values, k)
    return index[kept], values[kept]


def _finite(scores: Tensor) -> Tensor:
    if not scores.sum().isfinite() and not scores.isfinite().all():  # the sum costs a tenth
        raise JobError("Some importance is not finite; the gradients overflowed (try --precision fp32).")
    return scores


def top(scores: Float[Tensor, " n"], k: int) -> Int64[Tensor, " k"]:
    """The ascending indices of the k largest scores (n,), ties to the lower index.

    Raises JobError if any is not finite.
    """
    least = _finite(scores).topk(k, sorted=False).values.min()
    above = (scores > least).nonzero().flatten()
    ties = (scores == least).nonzero().flatten()[: k - len(above)]
    return torch.cat([above, ties]).sort().values


def split(index: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Ascending indices over all tensors of these sizes -> indices within each; tensors without any are left out."""
    ends = torch.tensor([0, *sizes.values()]).cumsum(0)
    cuts = torch.searchsorted(index, ends)
    entries = {name: index[cuts[i] : cuts[i + 1]] - ends[i] for i, name in enumerate(sizes)}
    return {name: chosen for name, chosen in entries.items() if len(chosen)}


def overlap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """|A and B| / |A| of two choices of entries."""
    both = sum(int(torch.isin(index, other[name]).sum()) for name, index in one.items() if name in other)
    return both / sum(len(index) for index in one.values())


def total(vit: nn.Module) -> int:
    """Weights of a backbone: what every ratio is a share of."""
    return sum(p.numel() for p in vit.parameters())


def share(k: int, whole: int) -> float:
    """The shortest decimal number that asks for exactly k of `whole`, so that 1% and its count are one job."""
    written = (float(f"{k / whole:.{digits}g}") for digits in range(1, 18))
    return next(share for share in written if round(share * whole) == k)
