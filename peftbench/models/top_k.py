"""Select single entries of a network's tensors by score, and convert counts to shares of all weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from peftbench.errors import JobError

ROOM = 1 << 20  # scores kept beside the k largest so far before the smaller ones are dropped


def largest(scores: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], k: int) -> dict[str, Tensor]:
    """Return the k largest scores over all tensors, as ascending flat indices for each tensor that has any.

    Ties go to the earlier tensor and, within it, to the lower index. Scores may be an iterable of pairs, with a tensor
    in several pieces: then memory holds no more than a piece and a few times k. Raises JobError if a score is not
    finite.
    """
    pairs: Iterable[Any] = scores.items() if isinstance(scores, Mapping) else scores
    index, _, sizes = largest_flat(pairs, k)
    return split(index, sizes)


def largest_flat(scores: Iterable[tuple[str, Tensor]], k: int) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Return the ascending indices of the k largest over all tensors, their scores, and the size of each tensor."""
    sizes: dict[str, int] = {}
    held: list[tuple[Tensor, Tensor]] = []  # indices and scores that may still be among the k largest
    count, seen, least = 0, 0, -torch.inf
    for name, score in scores:
        flat = _finite(score.flatten())
        new = (flat > least).nonzero().flatten()  # a tie with the least of k has a higher index than all of them
        held.append((new + seen, flat[new]))
        sizes[name] = sizes.get(name, 0) + len(flat)
        count, seen = count + len(new), seen + len(flat)
        if count > k + max(k, ROOM):
            held, count = [_best(held, k)], k
            least = held[0][1].min().item()
    return *_best(held, k), sizes


def _best(held: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    index, values = (torch.cat(parts) for parts in zip(*held, strict=True))
    best = top(values, k)
    return index[best], values[best]


def _finite(scores: Tensor) -> Tensor:
    if not scores.sum().isfinite() and not scores.isfinite().all():  # the sum takes a tenth of the time
        raise JobError("Some importances are not finite: the gradients overflowed. Try --precision fp32.")
    return scores


def top(scores: Float[Tensor, " n"], k: int) -> Int64[Tensor, " k"]:
    """Return the ascending indices of the k largest scores (n,), ties to the lower index.

    Raises JobError if a score is not finite.
    """
    least = _finite(scores).topk(k, sorted=False).values.min()
    above = (scores > least).nonzero().flatten()
    ties = (scores == least).nonzero().flatten()[: k - len(above)]
    return torch.cat([above, ties]).sort().values


def split(index: Tensor, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Convert ascending indices over all tensors of these sizes to indices in each; omit tensors without any."""
    ends = torch.tensor([0, *sizes.values()]).cumsum(0)
    cuts = torch.searchsorted(index, ends)
    entries = {name: index[cuts[i] : cuts[i + 1]] - ends[i] for i, name in enumerate(sizes)}
    return {name: chosen for name, chosen in entries.items() if len(chosen)}


@dataclass(frozen=True)
class Cutoff:
    """The least of the k largest scores, from which they can be selected a tensor at a time."""

    least: float
    ties: int  # entries of this score that are among the k: the first ones


def cutoffs(scores: Float32[Tensor, " n"], ks: Sequence[int]) -> list[Cutoff]:
    """Return the cutoff of each k in 1..n, in place: the order of `scores` is lost, no copy is made.

    Raises JobError if a score is not finite.
    """
    values = _finite(scores).numpy()
    values.partition([len(values) - k for k in ks])
    found = []
    for k in ks:
        least = float(values[len(values) - k])
        found.append(Cutoff(least, k - int((values[len(values) - k :] > least).sum())))
    return found


def select(scores: Iterable[tuple[str, Tensor]], cutoff: Cutoff) -> Iterator[tuple[str, Tensor]]:
    """Yield for each tensor the ascending flat indices of its entries at or above the cutoff, as `largest` would."""
    left = cutoff.ties
    for name, score in scores:
        flat = score.flatten()
        ties = (flat == cutoff.least).nonzero().flatten()[:left]
        left -= len(ties)
        yield name, torch.cat([(flat > cutoff.least).nonzero().flatten(), ties]).sort().values


def overlap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return |A and B| / |A| of two selections of entries."""
    both = sum(int(torch.isin(index, other[name]).sum()) for name, index in one.items() if name in other)
    return both / sum(len(index) for index in one.values())


def backbone_size(vit: nn.Module) -> int:
    """Return the number of weights of a backbone, the whole of every ratio."""
    return sum(p.numel() for p in vit.parameters())


def shortest_share(k: int, whole: int) -> float:
    """Return the shortest decimal number that gives exactly k of `whole`, so that 1% and its count are one job."""
    candidates = (float(f"{k / whole:.{digits}g}") for digits in range(1, 18))
    return next(share for share in candidates if round(share * whole) == k)
