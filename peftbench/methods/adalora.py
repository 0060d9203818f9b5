"""AdaLoRA: LoRA in the form of a singular value decomposition whose least important ranks are pruned.

Zhang et al., ICLR 2023. peft's RankAllocator computes the scores, the schedule and the selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftbench.core.fields import AtLeast1, Fraction, NotNegative, checked
from peftbench.errors import RequestError
from peftbench.methods._fields import Size
from peftbench.methods._hub import LowRankMethod
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Callback, Graft, Plan, Probe, Sizes


class AdaLoRATuner(HubTuner):
    """peft's tuner with a frozen scale: peft makes it trainable when it moves it to another device or dtype."""

    def __init__(self, base: nn.Module, first: int, last: int, alpha: int) -> None:
        super().__init__(base, "ADALORA", init_r=first, target_r=last, lora_alpha=alpha, total_step=1)
        self.get_parameter("base.ranknum.default").requires_grad = False


class RankSchedule(Callback):
    """Reduce the ranks from `first` per layer to `last` on average, between `warmup` and 1 - `final` of all steps."""

    def __init__(self, vit: nn.Module, last: int, warmup: float, final: float, every: int, pull: float) -> None:
        from peft.tuners.adalora.layer import RankAllocator  # noqa: PLC0415 - imports transformers

        super().__init__()
        self.vit, self.warmup, self.final, self.pull = (
            (vit,),
            warmup,
            final,
            pull,
        )  # a tuple, so that the network is no submodule
        self.settings = SimpleNamespace(target_r=last, beta1=0.85, beta2=0.85, deltaT=every)
        allocator: Any = RankAllocator
        self.allocator = allocator(vit, self.settings, "default")
        self.tensors = {n: p for n, p in vit.named_parameters() if "lora_" in n}
        for number, (name, tensor) in enumerate(self.tensors.items()):
            self.register_buffer(f"sensitivity_{number}", torch.zeros_like(tensor))
            self.register_buffer(f"uncertainty_{number}", torch.zeros_like(tensor))
            if "lora_E" in name:
                self.register_buffer(f"kept_{number}", torch.ones_like(tensor, dtype=torch.bool))

    def penalty(self) -> Tensor:
        """Return `pull` times the mean distance of the matrices of directions from orthonormal ones, a scalar."""
        far = [_distance(p.T if "lora_B" in n else p) for n, p in self.tensors.items() if "lora_E" not in n]
        return self.pull * torch.stack(far).mean()

    def after_step(self, step: int, steps: int) -> None:
        """Score the ranks and prune some of them on schedule; after the schedule keep pruned ranks at zero."""
        warmup, final = int(self.warmup * steps), int(self.final * steps)
        vars(self.settings).update(total_step=steps, tinit=warmup, tfinal=final)
        if step <= steps - final:
            self._allocate(step, last=step == steps - final)
        else:
            with torch.no_grad():
                for number, (name, tensor) in enumerate(self.tensors.items()):
                    if "lora_E" in name:
                        tensor.mul_(self.get_buffer(f"kept_{number}"))

    def _allocate(self, step: int, *, last: bool) -> None:
        """Run a step of peft's allocator on the scores in the buffers, and store the new scores there."""
        allocator = self.allocator
        for kind, memory in (("sensitivity", allocator.exp_avg_ipt), ("uncertainty", allocator.exp_avg_unc)):
            memory.update({name: self.get_buffer(f"{kind}_{number}") for number, name in enumerate(self.tensors)})
        allocator.ipt = dict(allocator.exp_avg_ipt)  # the allocator resets the scores of names it does not find here
        _, kept = allocator.update_and_allocate(self.vit[0], step, force_mask=last)
        for number, (name, tensor) in enumerate(self.tensors.items()):
            self.get_buffer(f"sensitivity_{number}").copy_(allocator.exp_avg_ipt[name])
            self.get_buffer(f"uncertainty_{number}").copy_(allocator.exp_avg_unc[name])
            if kept and name in kept:
                self.get_buffer(f"kept_{number}").copy_(torch.tensor(kept[name]).view_as(tensor))


def _distance(rows: Tensor) -> Tensor:
    """Return the Frobenius norm of R R' - 1 for rows R (r, n), 0 if they are orthonormal."""
    far: Tensor = torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
    return far


@checked
class AdaLoRA(LowRankMethod):
    """y = Wx + b + (alpha / first) P diag(e) Q x, e zero at the start; 1.5 r ranks per layer at the start."""

    kind: ClassVar[str] = "ADALORA"

    r: Size = 8  # ranks per layer at the end, on average
    alpha: AtLeast1 = 8
    warmup: Fraction = 0.1  # share of the steps before the first rank is pruned
    final: Fraction = 0.5  # share of the steps after the last one is pruned
    every: AtLeast1 = 10  # steps between two selections
    pull: NotNegative = 0.5  # weight of the penalty for directions that are not orthonormal

    def __post_init__(self) -> None:
        if self.warmup + self.final >= 1:
            raise RequestError(
                f"adalora: warmup + final must be below 1 (shares of the steps), got {self.warmup} + {self.final}."
            )

    @property
    def first(self) -> int:
        """Ranks per layer at the start."""
        return max(self.r + 1, round(1.5 * self.r))

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Return the method's own adapter around peft's tuner."""
        return AdaLoRATuner, {"first": self.first, "last": self.r, "alpha": self.alpha}

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap the layers and add the schedule over all of them."""
        shares = {"warmup": self.warmup, "final": self.final, "every": self.every, "pull": self.pull}
        return replace(super().plan(vit, probe), callback=(RankSchedule, {"last": self.r, **shares}))

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of all initial ranks, each with two directions and a value."""
        return self.first * (rows + columns + 1)

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return 1 to two thirds of the width."""
        return range(1, 2 * min(map(min, self.shapes(vit))) // 3 + 1)


plugin = AdaLoRA
