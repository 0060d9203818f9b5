"""torch.compile for the blocks of a network while it trains (`--compile`).

It is faster on a GPU only. A compiled block adds in another order, so the option is part of a job's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.errors import JobError

BACKEND: str | Callable[..., Any] = "inductor"
# Limit of graphs for the code that all blocks share: blocks with different numbers of single weights need graphs of
# their own, and above torch's default limit of 8 the rest would silently run without compilation.
GRAPHS = 1024


@contextmanager
def compiled(vit: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Run the blocks of `vit` compiled in this block, in training mode, if `enabled`.

    Evaluation is not compiled, so recorded scores are what `peftbench predict` computes later. The graphs do not depend
    on what this process compiled before. Raises JobError if torch cannot compile a block.
    """
    if not enabled:
        yield
        return
    blocks = vit.get_submodule("blocks")
    torch.compiler.reset()
    with ExitStack() as stack:
        stack.enter_context(
            torch._dynamo.config.patch(  # noqa: SLF001 - torch has no other name for these limits
                recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS, fail_on_recompile_limit_hit=True
            )
        )
        for block in blocks.children():
            block.forward = _TrainingCompiled(block)
            stack.callback(block.__dict__.pop, "forward")
        try:
            yield
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            cause = getattr(error, "inner_exception", error)  # the backend's own error, if any
            reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            raise JobError(f"torch.compile failed; run without --compile: {reason}") from error


class _TrainingCompiled:
    """A block's forward: compiled in training mode, plain in evaluation mode."""

    def __init__(self, block: nn.Module) -> None:
        # fallback_random: the same dropout masks as without compilation
        options: dict[str, Any] | None = {"fallback_random": True} if BACKEND == "inductor" else None
        self.block, self.plain = block, block.forward
        self.fast: Callable[..., Tensor] = torch.compile(block.forward, backend=BACKEND, options=options)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - the block's own arguments
        out: Tensor = (self.fast if self.block.training else self.plain)(*args, **kwargs)
        return out
