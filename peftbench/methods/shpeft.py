"""SH-PEFT: the single weights that matter most to the task and to the backbone (Liu et al., MICCAI 2024).

    I = I_td + lambda (sum I_td / sum I_ta) I_ta            equation 1, both terms brought to one scale
    td, task-dependent: from gradients of the training loss at the pretrained weights
    ta, task-agnostic: from the weights themselves

Exactly k = round(ratio N) entries of the whole backbone learn: the largest I, ties to the lower index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from peftbench.errors import JobError, RequestError
from peftbench.plan import Fit, Method, Plan, Probe, edge

# td -> (what the probe adds up over batches, what is made of the sum)
TASK = {
    "L2_sum_of_sq": ("squares", "same"),  # sum_b g_b^2, as SPT does: the paper's L2
    "L2_sq_of_sum": ("sums", "square"),
    "L2_per_sample": ("sample_squares", "same"),
    "L1_abs_of_sum": ("sums", "abs"),  # |sum_b g_b|: the paper's L1
    "L1_sum_of_abs": ("absolutes", "same"),
    "L1_signed": ("sums", "same"),
}


@dataclass(frozen=True)
class SHPEFT(Method):
    """Gradient-times-nothing-but-itself importance plus weight magnitude.

    See the catalogue for what the paper leaves open.
    """

    knob: ClassVar[str | None] = "ratio"

    ratio: float = 0.01  # share of the backbone's weights
    lam: float = 1.0  # lambda
    td: Literal[
        "L2_sum_of_sq", "L2_sq_of_sum", "L2_per_sample", "L1_abs_of_sum", "L1_sum_of_abs", "L1_signed", "none"
    ] = "L2_sum_of_sq"
    ta: Literal["L2", "L1", "none"] = "L2"
    candidates: Literal["all", "linear"] = "all"  # linear: weights of Linear layers only
    scaling: Literal["global", "tensor"] = "global"  # over what the two terms are brought to one scale
    batches: int | None = None  # how many training batches the estimate sees; None: one pass over train

    def __post_init__(self) -> None:
        if self.td == "none" and self.ta == "none":
            raise RequestError("shpeft: td and ta are both none, so nothing says which weights matter; keep one.")
        if not 0 < self.ratio <= 1:
            raise RequestError(f"shpeft: ratio = {self.ratio} will not do: it lies above 0 and at most at 1.")
        if self.batches is not None and self.batches < 2:  # noqa: PLR2004 - the two halves of the stability
            raise RequestError(
                f"shpeft: batches = {self.batches} will not do: at least 2, for an estimate and its stability."
            )
        if not 0 <= self.lam < math.inf:
            raise RequestError(f"shpeft: lam = {self.lam} will not do: it is a number and not negative.")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """The chosen entries of every tensor, and how far two halves of the data agree on them."""
        names, k = self._candidates(vit), self.count(vit)
        ta = [_magnitude(vit.get_parameter(name), self.ta) for name in names]
        if self.td == "none":
            return Plan(entries=_split(top(_flat(ta), k), names, ta))
        estimate, shape = TASK[self.td]
        halves = probe.estimate(estimate, self.batches)
        even, odd = ([half[name].double().flatten() for name in names] for half in halves)
        masks = [
            top(self._importance(_shaped(td, shape), ta), k)
            for td in ([e + o for e, o in zip(even, odd, strict=True)], even, odd)
        ]
        overlap = torch.isin(masks[1], masks[2]).sum().item() / k
        halved = any(bool(part.any()) for part in odd)  # one batch alone has no second half
        return Plan(entries=_split(masks[0], names, ta), facts={"mask_split_half_overlap": overlap} if halved else {})

    def count(self, vit: nn.Module) -> int:
        """round(ratio N), at most as many as there are candidates."""
        k = round(self.ratio * _numel(vit))
        there = sum(vit.get_parameter(name).numel() for name in self._candidates(vit))
        if k < 1 or k > there:
            raise RequestError(f"shpeft: ratio {self.ratio:g} asks for {k} weights; there are 1 to {there} candidates.")
        return k

    def within(self, budget: int, vit: nn.Module) -> Fit:
        """Any count can be had, from one weight to all candidates."""
        there = sum(vit.get_parameter(name).numel() for name in self._candidates(vit))
        reached = max(1, min(budget, there))
        return Fit(replace(self, ratio=_share(reached, _numel(vit))), reached, edge(budget, (1, there)))

    def _candidates(self, vit: nn.Module) -> list[str]:
        names = [name for name, _ in vit.named_parameters()]
        if self.candidates == "all":
            return names
        linear = {f"{n}.weight" for n, m in vit.named_modules() if isinstance(m, nn.Linear)}
        return [name for name in names if name in linear]

    def _importance(self, td: list[Tensor], ta: list[Tensor]) -> Tensor:
        """Equation 1 over all candidates, flat, float64."""
        if self.ta == "none" or self.lam == 0:
            return _flat(td)
        if self.scaling == "tensor":
            return _flat(
                [t + self.lam * (t.sum() / w.sum().clamp_min(1e-300)) * w for t, w in zip(td, ta, strict=True)]
            )
        task, own = _flat(td), _flat(ta)
        return task + self.lam * (task.sum() / own.sum()) * own


def _magnitude(weight: Tensor, kind: str) -> Tensor:
    flat = weight.detach().cpu().double().flatten()
    return flat.square() if kind == "L2" else flat.abs() if kind == "L1" else torch.zeros_like(flat)


def _shaped(sums: list[Tensor], shape: str) -> list[Tensor]:
    return [s.square() if shape == "square" else s.abs() if shape == "abs" else s for s in sums]


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts)


def _numel(vit: nn.Module) -> int:
    return sum(p.numel() for p in vit.parameters())


def _share(k: int, total: int) -> float:
    """The shortest decimal number that asks for exactly k of total, so that 1% and its count are one job."""
    written = (float(f"{k / total:.{digits}g}") for digits in range(1, 18))
    return next(share for share in written if round(share * total) == k)


def top(scores: Tensor, k: int) -> Tensor:
    """The ascending indices of the k largest scores (n,), ties to the lower index.

    Raises JobError if any is not finite.
    """
    if not scores.isfinite().all():
        raise JobError("shpeft: some importance is not finite; the gradients overflowed (try --precision fp32).")
    least = scores.topk(k, sorted=False).values.min()
    above = (scores > least).nonzero().flatten()
    ties = (scores == least).nonzero().flatten()[: k - len(above)]
    return torch.cat([above, ties]).sort().values


def _split(index: Tensor, names: list[str], parts: list[Tensor]) -> dict[str, Tensor]:
    """Indices over all candidates -> indices within each tensor; tensors without any are left out."""
    ends = torch.tensor([0, *(len(p) for p in parts)]).cumsum(0)
    cuts = torch.searchsorted(index, ends)
    entries = {n: index[cuts[i] : cuts[i + 1]] - ends[i] for i, n in enumerate(names)}
    return {n: chosen for n, chosen in entries.items() if len(chosen)}


plugin = SHPEFT
