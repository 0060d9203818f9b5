"""Opt-in torch.compile, one transformer block at a time, while a network trains (`--compile`).

It pays on a GPU alone. A compiled block sums in another order, so the field is part of a job's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.errors import JobError

BACKEND: str | Callable[..., Any] = "inductor"
# Of one piece of code, which the blocks share: those whose single weights differ in number are graphs of their own,
# and behind torch's own limit of 8 the rest would silently run as before.
GRAPHS = 1024


@contextmanager
def compiled(vit: nn.Module, *, asked: bool) -> Iterator[None]:
    """Within, the blocks of `vit` run compiled where `asked`, in training mode only.

    What is evaluated and recorded is thus what `peftbench predict` computes later. The graphs do not depend on what
    this process compiled before. Raises JobError for what torch cannot compile.
    """
    if not asked:
        yield
        return
    blocks = vit.get_submodule("blocks")
    torch.compiler.reset()
    with ExitStack() as stack:
        stack.enter_context(
            torch._dynamo.config.patch(  # noqa: SLF001 - its public name for limits
                recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS, fail_on_recompile_limit_hit=True
            )
        )
        for block in blocks.children():
            block.forward = _Either(block)
            stack.callback(block.__dict__.pop, "forward")
        try:
            yield
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            cause = getattr(error, "inner_exception", error)  # of a backend: what it raised
            reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            raise JobError(f"torch.compile gave up, so leave --compile out: {reason}") from error


class _Either:
    """A block's forward, compiled for training."""

    def __init__(self, block: nn.Module) -> None:
        # The same draws of dropout as without.
        options: dict[str, Any] | None = {"fallback_random": True} if BACKEND == "inductor" else None
        self.block, self.plain = block, block.forward
        self.fast: Callable[..., Tensor] = torch.compile(block.forward, backend=BACKEND, options=options)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - whatever the block takes
        out: Tensor = (self.fast if self.block.training else self.plain)(*args, **kwargs)
        return out
