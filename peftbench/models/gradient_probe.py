"""Gradients of the training loss at the pretrained weights, for methods that select weights by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from peftbench.errors import JobError, PluginError
from peftbench.models.plan import Scores
from peftbench.storage.checked_tensors import cached

Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W), labels (B,)

ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {  # name -> the function of each batch's gradient that is summed
    "squares": torch.square,
    "sums": torch.clone,
    "absolutes": torch.abs,
    "sample_squares": torch.square,  # with batches of one image
}


@dataclass(frozen=True)
class GradientProbe:
    """Compute the classifier's gradients on `batches` in evaluation mode, without updating any weight."""

    model: nn.Module  # has the backbone as `vit`
    batches: Callable[[], Iterator[Batch]]  # returns one pass over train in a fixed order
    loss: Callable[[Tensor, Tensor], Tensor]
    autocast: torch.dtype | None = None
    keep: Path | None = None  # cache folder of the estimates; its name identifies all that determines them
    seed: int = 0  # of the job

    def gradients(self) -> Iterator[Scores]:
        """Yield for each batch the gradient of its mean loss for every backbone tensor."""
        return self._gradients(self.batches())

    def estimate(self, kind: str, batches: int | None = None) -> tuple[Scores, Scores]:
        """Return the sums of ESTIMATES[kind] over the even and over the odd ones of the first `batches` (None: all).

        Read from the cache if it was computed before. Raises PluginError for an unknown kind, JobError if all
        gradients are zero.
        """
        if kind not in ESTIMATES:
            raise PluginError(f"A method requests the unknown estimate {kind!r}; the probe has {', '.join(ESTIMATES)}.")
        file = self.keep / f"{kind}_{batches or 'all'}.safetensors" if self.keep else None
        sums = cached(file, partial(self._sum, kind, batches))
        even, odd = (
            {n.partition("/")[2]: t for n, t in sums.items() if n.startswith(half)} for half in ("even/", "odd/")
        )
        return even, odd

    def _sum(self, kind: str, batches: int | None) -> Scores:
        used = islice(self.batches(), batches)
        vit: nn.Module = self.model.get_submodule("vit")
        sums = {f"{half}/{n}": torch.zeros_like(p) for half in ("even", "odd") for n, p in vit.named_parameters()}
        for number, gradients in enumerate(self._gradients(_images(used) if kind == "sample_squares" else used)):
            half = ("even", "odd")[number % 2]
            for name in list(gradients):  # each is freed here, not after the next batch
                sums[f"{half}/{name}"] += ESTIMATES[kind](gradients.pop(name))
        if not any(bool(total.any()) for total in sums.values()):
            raise JobError("All gradients are zero, so weights cannot be ranked; try --precision fp32.")
        return {name: total.cpu() for name, total in sums.items()}

    def _gradients(self, batches: Iterator[Batch]) -> Iterator[Scores]:
        vit: nn.Module = self.model.get_submodule("vit")
        with _evaluating(self.model):
            named = dict(vit.named_parameters())
            tensors = list(named.values())
            for images, labels in batches:
                with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
                    logits = self.model(images)
                loss = self.loss(logits.float() if logits.dtype != torch.float64 else logits, labels)
                del logits  # gradients get no name here, so that the caller can free them one by one
                yield dict(zip(named, torch.autograd.grad(loss, tensors, materialize_grads=True), strict=True))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Use evaluation mode and compute all gradients in this block; restore the modes and flags afterwards."""
    flags, modes = {p: p.requires_grad for p in model.parameters()}, {m: m.training for m in model.modules()}
    model.eval().requires_grad_(requires_grad=True)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def _images(batches: Iterator[Batch]) -> Iterator[Batch]:
    for images, labels in batches:
        yield from zip(images.split(1), labels.split(1), strict=True)
