"""Choosing single entries of a network's tensors by score, and naming how many as a share of all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftbench.errors import JobError


def largest(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The k largest scores over all tensors -> for each tensor that has any, the ascending flat indices of its own.

    Ties go to the earlier tensor and, within it, to the lower index. Raises JobError if any score is not finite.
    """
    index = top(torch.cat([score.flatten() for score in scores.values()]), k)
    return split(index, {name: score.numel() for name, score in scores.items()})


def top(scores: Tensor, k: int) -> Tensor:
    """The ascending indices of the k largest scores (n,), ties to the lower index.

    Raises JobError if any is not finite.
    """
    if not scores.isfinite().all():
        raise JobError("Some importance is not finite; the gradients overflowed (try --precision fp32).")
    least = scores.topk(k, sorted=False).values.min()
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
