"""One training step: forward, backward and update, either as they come or captured once as a CUDA graph and replayed.

A graph (opt-in, `--graph`) spares the processor what it does for every kernel of a step: several hundred launches are
one. All that a replay computes with must stay where it was captured, so a batch is copied into the captured one, and
the learning rate is a number on the card.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftbench.plan import Callback

WARM_UP = 3  # steps before a capture: libraries, optimiser and autograd allocate what they keep

Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> the batch's mean


@dataclass(frozen=True)
class Step:
    """What a training step is made of, but for its batch."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    loss_of: Loss
    autocast: torch.dtype | None = None
    clip: float = 0.0  # the largest norm of the gradient; 0: any
    pieces: int = 1  # go through the network one after the other, for want of memory; their gradients add up
    callback: Callback | None = None

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Train on inputs (B, ...) and labels (B, ...); the batch's mean loss before that, a float64 scalar."""
        self.optimiser.zero_grad(set_to_none=True)
        chunks = zip(inputs.chunk(self.pieces), labels.chunk(self.pieces), strict=True)
        losses = [self._backward(x, y, len(y) / len(labels)) for x, y in chunks]
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        return torch.stack(losses).sum()

    def _backward(self, inputs: Tensor, labels: Tensor, share: float) -> Tensor:
        """Add the gradients of one piece, `share` of a batch; its part of the batch's mean loss."""
        with torch.autocast(labels.device.type, self.autocast, enabled=self.autocast is not None):
            logits = self.model(inputs)
        loss = share * self.loss_of(logits, labels)
        penalty = self.callback.penalty() if self.callback else None
        (loss if penalty is None else loss + share * penalty).backward()
        return loss.detach().double()


class Captured:
    """A step whose first calls run as they come, in earnest, and whose further ones replay a graph of it."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.step, self.calls = step, 0
        self.replay: Callable[[], Tensor] | None = None
        self.inputs, self.labels = torch.empty(0), torch.empty(0)

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """As the step does; every batch must have the shape of the first."""
        self.calls += 1
        if self.calls <= WARM_UP:
            return aside(lambda: self.step(inputs, labels))
        if self.replay is None:
            self.inputs, self.labels = inputs.clone(), labels.clone()
            self.replay = capture(lambda: self.step(self.inputs, self.labels))
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        return self.replay().clone()


def aside(work: Callable[[], Tensor]) -> Tensor:
    """Do work on a stream of its own, as what is captured later must have been done once."""
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        made = work()
    here.wait_stream(side)
    return made


def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record work as a CUDA graph, without doing it; each call of what is returned does it and gives its result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = work()

    def replay() -> Tensor:
        graph.replay()
        return made

    return replay
