"""AdaLoRA: LoRA in the form of a singular value decomposition that loses ranks where they matter least.

Zhang et al., ICLR 2023. The scores, the schedule and the choice are peft's RankAllocator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftbench.errors import RequestError
from peftbench.methods._hub import LowRank
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Callback, Graft, Plan, Probe, Sizes


class AdaLoRATuner(HubTuner):
    """peft's, whose scale never trains: peft sets the scale free whenever it moves it to another device or type."""

    def __init__(self, base: nn.Module, first: int, last: int, alpha: int) -> None:
        super().__init__(base, "ADALORA", init_r=first, target_r=last, lora_alpha=alpha, total_step=1)
        self.get_parameter("base.ranknum.default").requires_grad = False


class RankSchedule(Callback):
    """From `first` ranks a site to `last` on average, between the shares `warmup` and 1 - `final` of all steps."""

    def __init__(self, vit: nn.Module, last: int, warmup: float, final: float, every: int, pull: float) -> None:
        from peft.tuners.adalora.layer import RankAllocator  # noqa: PLC0415 - imports transformers

        super().__init__()
        self.vit, self.warmup, self.final, self.pull = (vit,), warmup, final, pull  # a tuple: the network is no child
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
        """How far the directions are from orthonormal, on average over all matrices of directions."""
        far = [_skewed(p.T if "lora_B" in n else p) for n, p in self.tensors.items() if "lora_E" not in n]
        return self.pull * torch.stack(far).mean()

    def after_step(self, step: int, steps: int) -> None:
        """Score, and at times silence what scores least; in the end keep silent what is."""
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
        """peft's step, its memory lent from the buffers and put back."""
        lent = self.allocator
        for kind, memory in (("sensitivity", lent.exp_avg_ipt), ("uncertainty", lent.exp_avg_unc)):
            memory.update({name: self.get_buffer(f"{kind}_{number}") for number, name in enumerate(self.tensors)})
        lent.ipt = dict(lent.exp_avg_ipt)  # what is there is not begun anew
        _, kept = lent.update_and_allocate(self.vit[0], step, force_mask=last)
        for number, (name, tensor) in enumerate(self.tensors.items()):
            self.get_buffer(f"sensitivity_{number}").copy_(lent.exp_avg_ipt[name])
            self.get_buffer(f"uncertainty_{number}").copy_(lent.exp_avg_unc[name])
            if kept and name in kept:
                self.get_buffer(f"kept_{number}").copy_(torch.tensor(kept[name]).view_as(tensor))


def _skewed(rows: Tensor) -> Tensor:
    """The Frobenius norm of what keeps rows (r, n) from being orthonormal."""
    far: Tensor = torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
    return far


@dataclass(frozen=True)
class AdaLoRA(LowRank):
    """y = Wx + b + (alpha / first) P diag(e) Q x, e zero at the start; half as many ranks again begin as are left."""

    kind: ClassVar[str] = "ADALORA"

    r: int = 8  # ranks a site that are left, on average
    alpha: int = 8
    warmup: float = 0.1  # of all steps, before the first rank goes
    final: float = 0.5  # of all steps, behind the last one
    every: int = 10  # steps between two choices
    pull: float = 0.5  # towards orthonormal directions

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.warmup >= 0 and self.final >= 0 and self.warmup + self.final < 1):
            raise RequestError("adalora: warmup and final are shares of the steps and leave some between them.")

    @property
    def first(self) -> int:
        """Ranks a site at the start."""
        return max(self.r + 1, round(1.5 * self.r))

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Ours, around peft's."""
        return AdaLoRATuner, {"first": self.first, "last": self.r, "alpha": self.alpha}

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """The sites and the schedule over all of them."""
        shares = {"warmup": self.warmup, "final": self.final, "every": self.every, "pull": self.pull}
        return replace(super().plan(vit, probe), callback=(RankSchedule, {"last": self.r, **shares}))

    def trained(self, rows: int, columns: int) -> int:
        """All that begin, each with two directions and a value."""
        return self.first * (rows + columns + 1)

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Up to two thirds of the width."""
        return range(1, 2 * min(map(min, self.shapes(vit))) // 3 + 1)


plugin = AdaLoRA
