"""Gradients of the training loss at the pretrained weights, for methods that look before they choose."""

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

ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {  # what is added up over the batches, from the batch's gradient
    "squares": torch.square,
    "sums": torch.clone,
    "absolutes": torch.abs,
    "sample_squares": torch.square,  # a batch of one image each time
}


@dataclass(frozen=True)
class GradientProbe:
    """Reads the classifier's gradients on `batches`, weights frozen, in evaluation mode, without augmentation."""

    model: nn.Module  # holds the backbone as `vit`
    batches: Callable[[], Iterator[Batch]]  # one pass over train in a fixed order, anew at each call
    loss: Callable[[Tensor, Tensor], Tensor]
    autocast: torch.dtype | None = None
    keep: Path | None = None  # folder of this probe's estimates; its name holds everything that decides them
    seed: int = 0  # the job's

    def gradients(self) -> Iterator[Scores]:
        """For each batch, the gradient of its mean loss for every backbone tensor."""
        return self._gradients(self.batches())

    def estimate(self, kind: str, batches: int | None = None) -> tuple[Scores, Scores]:
        """The sum of ESTIMATES[kind] over the even and over the odd batches, of the first `batches` or of all.

        Read from disk where it was made before.
        """
        if kind not in ESTIMATES:
            raise PluginError(f"There is no estimate {kind!r}; there are {', '.join(ESTIMATES)}.")
        file = self.keep / f"{kind}_{batches or 'all'}.safetensors" if self.keep else None
        sums = cached(file, partial(self._sum, kind, batches))
        even, odd = (
            {n.partition("/")[2]: t for n, t in sums.items() if n.startswith(half)} for half in ("even/", "odd/")
        )
        return even, odd

    def _sum(self, kind: str, batches: int | None) -> Scores:
        seen = islice(self.batches(), batches)
        vit: nn.Module = self.model.get_submodule("vit")
        sums = {f"{half}/{n}": torch.zeros_like(p) for half in ("even", "odd") for n, p in vit.named_parameters()}
        for number, gradients in enumerate(self._gradients(_singles(seen) if kind == "sample_squares" else seen)):
            half = ("even", "odd")[number % 2]
            for name, gradient in gradients.items():
                sums[f"{half}/{name}"] += ESTIMATES[kind](gradient)
        if not any(bool(total.any()) for total in sums.values()):
            raise JobError("Every gradient is zero, so nothing says which weights matter (try --precision fp32).")
        return {name: total.cpu() for name, total in sums.items()}

    def _gradients(self, batches: Iterator[Batch]) -> Iterator[Scores]:
        vit: nn.Module = self.model.get_submodule("vit")
        with _as_probed(self.model):
            named = dict(vit.named_parameters())
            for images, labels in batches:
                with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
                    logits = self.model(images)
                loss = self.loss(logits.float() if logits.dtype != torch.float64 else logits, labels)
                found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)  # unused ones: zero
                yield dict(zip(named, found, strict=True))


@contextmanager
def _as_probed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and gradients for the backbone; the model as it was afterwards."""
    flags, modes = {p: p.requires_grad for p in model.parameters()}, {m: m.training for m in model.modules()}
    model.eval().requires_grad_(requires_grad=True)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def _singles(batches: Iterator[Batch]) -> Iterator[Batch]:
    for images, labels in batches:
        yield from zip(images.split(1), labels.split(1), strict=True)
