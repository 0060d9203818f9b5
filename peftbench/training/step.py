"""One training step: forward, backward and update, run eagerly or as a captured CUDA graph.

With a graph (opt-in, `--graph`) one launch takes the place of several hundred kernel launches. A replay reads from the
memory that was captured, so each batch is copied there, and the learning rate is a tensor on the GPU.
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
from peftbench.models.method import Loss
from peftbench.models.plan import Callback

SYNC_WARNING = "called a synchronizing"  # part of torch's message for an operation that waits for the GPU
WARM_UP = 3  # eager steps before a capture, in which libraries, optimizer and autograd allocate what they keep


@dataclass(frozen=True)
class Step:
    """All that a training step needs except its batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Loss
    autocast: torch.dtype | None = None
    clip: float = 0.0  # the largest norm of the gradient; 0: no limit
    pieces: int = 1  # of a batch, which go through the network in turn; their gradients are summed
    callback: Callback | None = None

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Train on inputs (B, ...) and labels (B, ...); return the batch's mean loss, a float64 scalar."""
        self.optimizer.zero_grad(set_to_none=True)
        chunks = zip(inputs.chunk(self.pieces), labels.chunk(self.pieces), strict=True)
        losses = [self._backward(x, y, len(y) / len(labels)) for x, y in chunks]
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return torch.stack(losses).sum()

    def _backward(self, inputs: Tensor, labels: Tensor, share: float) -> Tensor:
        """Add the gradients of one piece, a `share` of the batch; return its part of the batch's mean loss."""
        with torch.autocast(labels.device.type, self.autocast, enabled=self.autocast is not None):
            logits = self.model(inputs)
        loss = share * self.loss_of(logits, labels)
        penalty = self.callback.penalty() if self.callback else None
        (loss if penalty is None else loss + share * penalty).backward()
        return loss.detach().double()


class Captured:
    """A step that runs WARM_UP times eagerly, then captures a CUDA graph and replays it."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.step, self.calls = step, 0
        self.replay: Callable[[], Tensor] | None = None
        self.inputs, self.labels = torch.empty(0), torch.empty(0)

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take the step; every batch must have the shape of the first."""
        self.calls += 1
        if self.calls <= WARM_UP:
            return on_side_stream(lambda: self.step(inputs, labels), last=self.calls == WARM_UP)
        if self.replay is None:
            self.inputs, self.labels = inputs.clone(), labels.clone()
            self.replay = capture(lambda: self.step(self.inputs, self.labels))
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        return self.replay().clone()


@cache
def _side_stream() -> torch.cuda.Stream:
    """Return one stream for all captures: memory of a stream is reused on the same stream only."""
    return torch.cuda.Stream()


def on_side_stream(work: Callable[[], Tensor], *, last: bool) -> Tensor:
    """Do work on the stream of the captures, which must see it once before a capture.

    Raises JobError if `last`, the last call before a capture, waits for the GPU.
    """
    here, side = torch.cuda.current_stream(), _side_stream()
    side.wait_stream(here)
    with torch.cuda.stream(side), _refuse_waiting() if last else nullcontext():
        result = work()
    here.wait_stream(side)
    return result


@contextmanager
def _refuse_waiting() -> Iterator[None]:
    """Raise JobError for an operation that waits for the GPU: a failed capture may leave torch unusable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if SYNC_WARNING not in str(error):
            raise
        why = "a training step of this method waits for the GPU, which a CUDA graph cannot capture"
        raise JobError(f"--graph: {why}; run it without --graph.") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture work as a CUDA graph without running it; return a function that replays it and returns its result."""
    graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=_side_stream()):
            result = work()
    except BaseException:
        torch.cuda.set_stream(here)  # older torch stays on the side stream
        raise

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
