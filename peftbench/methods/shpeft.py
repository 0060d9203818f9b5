"""SH-PEFT: train the single weights with the largest importance to task and backbone (Liu et al., MICCAI 2024).

    I = I_td + lambda (sum I_td / sum I_ta) I_ta            equation 1, both terms on the same scale
    td, task-dependent: from gradients of the training loss at the pretrained weights
    ta, task-agnostic: from the weights themselves

Exactly k = round(ratio N) weights of the whole backbone train: those of the largest I, ties to the lower index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from peftbench.core.fields import NotNegative, checked
from peftbench.core.syntax import LARGEST
from peftbench.errors import RequestError
from peftbench.methods._masked import Masked
from peftbench.models.plan import Plan, Probe, Scores
from peftbench.models.tensor_names import EMBEDDINGS
from peftbench.models.top_k import largest, overlap

# td -> (the sum over batches that the probe computes, the function of that sum)
TASK = {
    "L2_sum_of_sq": ("squares", "same"),  # sum_b g_b^2, as in SPT: the paper's L2
    "L2_sq_of_sum": ("sums", "square"),
    "L2_per_sample": ("sample_squares", "same"),
    "L1_abs_of_sum": ("sums", "abs"),  # |sum_b g_b|: the paper's L1
    "L1_sum_of_abs": ("absolutes", "same"),
    "L1_signed": ("sums", "same"),
}
WORDS = {"L1": "L1_abs_of_sum", "L2": "L2_sum_of_sq"}  # the paper's words for td
PIECE = 1 << 18  # entries processed at a time
FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"same": torch.clone, "square": torch.square, "abs": torch.abs}

TaskScore: TypeAlias = Annotated[
    Literal[
        "L1",
        "L2",
        "L2_sum_of_sq",
        "L2_sq_of_sum",
        "L2_per_sample",
        "L1_abs_of_sum",
        "L1_sum_of_abs",
        "L1_signed",
        "none",
    ],
    AfterValidator(lambda td: WORDS.get(td, td)),
]


@checked
class SHPEFT(Masked):
    """Importance from squared gradients plus weight magnitude.

    The catalogue (methods/shpeft.toml) lists what the paper leaves open and what is chosen here.
    """

    lam: NotNegative = 1.0  # lambda
    td: TaskScore = "L2_sum_of_sq"
    ta: Literal["auto", "L1", "L2", "none"] = "auto"  # auto: L1 if td is an L1 estimate, else L2; then stored as such
    candidates: Literal["all", "no_embeddings", "linear"] = "all"  # linear: weights of Linear layers only
    scaling: Literal["global", "tensor"] = "global"  # one ratio of sums for all tensors, or one for each
    batches: Annotated[int, Field(ge=2, le=LARGEST)] | None = None  # training batches used; None: one pass over train

    def __post_init__(self) -> None:
        if self.td == "none" and self.ta == "none":
            raise RequestError("shpeft: td and ta are both none, which leaves no importance; set one of them.")
        if self.ta == "auto":
            object.__setattr__(self, "ta", "L1" if self.td.startswith("L1") else "L2")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select entries of every tensor, and compute how far the two halves of the batches agree on them."""
        k, own = self.count(vit), {name: vit.get_parameter(name) for name in self.candidates_in(vit)}
        if self.td == "none":
            return Plan(entries=largest(_magnitudes(own, self.ta), k))
        estimate, function = TASK[self.td]
        even, odd = probe.estimate(estimate, self.batches)
        entries = self._select(own, (even, odd), function, k)
        if not any(bool(odd[name].any()) for name in own):  # a single batch has no second half
            return Plan(entries=entries)
        halves = [self._select(own, (half,), function, k) for half in (even, odd)]
        return Plan(entries=entries, facts={"mask_split_half_overlap": overlap(*halves)})

    def candidates_in(self, vit: nn.Module) -> list[str]:
        """Return all tensors, all except those of the embeddings, or the weights of Linear layers."""
        names = super().candidates_in(vit)
        if self.candidates == "all":
            return names
        if self.candidates == "no_embeddings":
            return [name for name in names if not name.startswith(EMBEDDINGS)]
        linear = {f"{n}.weight" for n, m in vit.named_modules() if isinstance(m, nn.Linear)}
        return [name for name in names if name in linear]

    def _select(self, own: Mapping[str, Tensor], sums: Sequence[Scores], function: str, k: int) -> dict[str, Tensor]:
        """Return the k entries of the largest importance."""
        return largest(self._importance(own, sums, function), k)

    def importance(self, vit: nn.Module, probe: Probe) -> Iterator[tuple[str, Tensor]]:
        """Yield the importance by which `plan` selects, in float64, name by name and a flat piece at a time."""
        own = {name: vit.get_parameter(name) for name in self.candidates_in(vit)}
        if self.td == "none":
            return _magnitudes(own, self.ta)
        estimate, function = TASK[self.td]
        return self._importance(own, probe.estimate(estimate, self.batches), function)

    def _importance(
        self, own: Mapping[str, Tensor], sums: Sequence[Scores], function: str
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield equation 1 over all candidates, in float64."""
        terms = partial(_terms, own, sums, FUNCTIONS[function], self.ta)
        if self.ta == "none" or self.lam == 0:
            return ((name, task) for name, task, _ in terms())
        sum_td, sum_ta = (dict.fromkeys(own, torch.zeros((), dtype=torch.float64)) for _ in range(2))
        for name, task, size in terms():
            sum_td[name], sum_ta[name] = sum_td[name] + task.sum(), sum_ta[name] + size.sum()
        scale = self._scale(sum_td, sum_ta)
        return ((name, task.add_(size * (self.lam * scale[name]))) for name, task, size in terms())

    def _scale(self, task: Scores, own: Scores) -> Scores:
        """Return the ratio of the sums, which puts the magnitudes on the scale of the task's importance."""
        if self.scaling == "tensor":
            return {name: task[name] / own[name].clamp_min(1e-300) for name in task}
        return dict.fromkeys(task, torch.stack(list(task.values())).sum() / torch.stack(list(own.values())).sum())


def _terms(
    own: Mapping[str, Tensor], sums: Sequence[Scores], function: Callable[[Tensor], Tensor], ta: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield both terms of equation 1 by name in float64, a piece of a tensor at a time: a few MB instead of GB."""
    for name, weight in own.items():
        flat = (tensor.detach().cpu().flatten().split(PIECE) for tensor in (weight, *(part[name] for part in sums)))
        for piece, first, *others in zip(*flat, strict=True):
            total = first.double()
            for other in others:
                total = total + other
            yield name, function(total), _magnitude(piece, ta)


def _magnitudes(own: Mapping[str, Tensor], kind: str) -> Iterator[tuple[str, Tensor]]:
    for name, weight in own.items():
        for piece in weight.detach().flatten().split(PIECE):
            yield name, _magnitude(piece, kind)


def _magnitude(weight: Tensor, kind: str) -> Tensor:
    own = weight.detach().cpu().double()
    return own.square() if kind == "L2" else own.abs() if kind == "L1" else torch.zeros_like(own)


plugin = SHPEFT
