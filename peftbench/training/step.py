"""One training step: forward, backward and update, either as they come or captured once as a CUDA graph and replayed.

A graph (opt-in, `--graph`) spares the processor what it does for every kernel of a step: several hundred launches are
one. All that a replay computes with must stay where it was captured, so a batch is copied into the captured one, and
the learning rate is a number on the card.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from peftbench.errors import JobError
from peftbench.models.plan import Callback

WAITED = "called a synchronizing"  # what torch says of an operation that waits for the card
WARM_UP = 3  # steps before a capture: libraries, optimizer and autograd allocate what they keep

Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> the batch's mean


@dataclass(frozen=True)
class Step:
    """What a training step is made of, but for its batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Loss
    autocast: torch.dtype | None = None
    clip: float = 0.0  # the largest norm of the gradient; 0: any
    pieces: int = 1  # go through the network one after the other, for want of memory; their gradients add up
    callback: Callback | None = None

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Train on inputs (B, ...) and labels (B, ...); the batch's mean loss before that, a float64 scalar."""
        self.optimizer.zero_grad(set_to_none=True)
        chunks = zip(inputs.chunk(self.pieces), labels.chunk(self.pieces), strict=True)
        losses = [self._backward(x, y, len(y) / len(labels)) for x, y in chunks]
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
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
            return aside(lambda: self.step(inputs, labels), last=self.calls == WARM_UP)
        if self.replay is None:
            self.inputs, self.labels = inputs.clone(), labels.clone()
            self.replay = capture(lambda: self.step(self.inputs, self.labels))
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        return self.replay().clone()


@cache
def _side() -> torch.cuda.Stream:
    """One for all: what was allocated on a stream is used again on the same one only."""
    return torch.cuda.Stream()


def aside(work: Callable[[], Tensor], *, last: bool) -> Tensor:
    """Do work on a stream of its own, as what is captured later must have been done once.

    Raises JobError where the `last` time before a capture waits for the card.
    """
    here, side = torch.cuda.current_stream(), _side()
    side.wait_stream(here)
    with torch.cuda.stream(side), _without_waiting() if last else nullcontext():
        made = work()
    here.wait_stream(side)
    return made


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Within, waiting for the card raises: a capture that fails may leave torch unusable in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if WAITED not in str(error):
            raise
        why = "a step of this method waits for the card, which a CUDA graph cannot hold"
        raise JobError(f"--graph: {why}; leave --graph out.") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record work as a CUDA graph, without doing it; each call of what is returned does it and gives its result."""
    graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=_side()):
            made = work()
    except BaseException:
        torch.cuda.set_stream(here)  # older torch stays on the other one
        raise

    def replay() -> Tensor:
        graph.replay()
        return made

    return replay
