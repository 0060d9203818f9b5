"""The gate bites: each spoilt method is caught by the rule meant for it, and a sound one by none."""
# ruff: noqa: ARG002 - the contract gives more than a spoilt method needs

from __future__ import annotations

import secrets
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.models.method import Match, Method
from peftbench.models.plan import Callback, Graft, Plan, Probe
from peftbench.testing import Finding, check_method, failed
from peftbench.testing.methods import ONCE, RULES
from peftbench.testing.networks import STYLES

# --- a sound method ------------------------------------------------------------------------------------------------


class LowRank(Graft):
    """base(x) + up down x"""

    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base)
        rows, columns = base.get_parameter("weight").shape
        self.up, self.down = nn.Parameter(torch.zeros(rows, r)), nn.Parameter(0.2 * torch.randn(r, columns))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.change(x)
        return out

    def change(self, x: Tensor) -> Tensor:
        return x @ self.down.T @ self.up.T

    def merged(self) -> nn.Module | None:
        layer = deepcopy(self.base)
        layer.get_parameter("weight").data += self.up @ self.down
        return layer


@dataclass(frozen=True)
class Sound(Method):
    knob: ClassVar[str | None] = "r"
    kind: ClassVar[type[Graft]] = LowRank
    callback: ClassVar[type[Callback] | None] = None

    r: int = 2

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        sites = {f"blocks.{i}.attn.qkv": (self.kind, {"r": self.r}) for i in range(2)}
        return Plan(grafts=sites, callback=(self.callback, {}) if self.callback else None)

    def sizes(self, vit: nn.Module) -> Sequence[float]:
        return range(1, 17)


def spoilt(kind: type[Graft] = LowRank, callback: type[Callback] | None = None, **promises: Any) -> type[Method]:
    """The sound method with another graft, another callback or other promises."""
    return type(f"Spoilt{kind.__name__}", (Sound,), {"kind": kind, "callback": callback, **promises})


# --- spoilt in what they decide --------------------------------------------------------------------------------------


class PlanRaises(Sound):
    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        raise ZeroDivisionError("by a width of zero")


class PlanWrites(Sound):
    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        vit.get_parameter("norm.weight").data.mul_(1.01)
        return super().plan(vit, probe)


class PlanHooks(Sound):
    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        vit.get_submodule("blocks.0").register_forward_hook(lambda *_: None)
        return super().plan(vit, probe)


class PlanDraws(Sound):
    knob = None

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        return Plan(entries={"blocks.0.mlp.fc1.weight": torch.randperm(4096)[:50].sort().values})


class NeedsData(Sound):
    knob = None

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        next(probe.gradients())
        return super().plan(vit, probe)


class WrongSize(LowRank):
    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:
        return super().size(base, **sizes) - 1


class IgnoresKnob(Sound):
    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        return Sound(r=2).plan(vit, probe) if self.r != 2 else super().plan(vit, probe)


class Greedy(Sound):
    def within(self, budget: int, vit: nn.Module) -> Match:
        fit = super().within(budget, vit)
        larger = self.at_size(min(16, 2 * int(fit.method.values()["r"])))
        return Match(larger, larger.count(vit), fit.edge)


@dataclass(frozen=True)
class ListField(Sound):
    sites: list[str] = field(default_factory=list)


# --- spoilt in how they train ----------------------------------------------------------------------------------------


class RandomUp(LowRank):
    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, r)
        nn.init.normal_(self.up)


class WritesBase(LowRank):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.base.get_parameter("weight").data.mul_(0.999)
        return super().forward(x)


class Leaks(Callback):
    """Weight decay on a whole tensor of which single entries were chosen."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.weights = [vit.get_parameter("blocks.0.attn.qkv.weight")]

    def after_step(self, step: int, steps: int) -> None:
        self.weights[0].data.mul_(0.999)


class DecayLeaks(Sound):
    knob = None

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        return Plan(entries={"blocks.0.attn.qkv.weight": torch.arange(0, 3072, 7)}, callback=(Leaks, {}))


class Dead(LowRank):
    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, r)
        self.spare = nn.Parameter(torch.zeros(3))


class Unseeded(LowRank):
    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, r)
        own = torch.Generator().manual_seed(secrets.randbits(32))
        self.down.data.normal_(generator=own)


class Forgets(Callback):
    """Counts its steps where no checkpoint looks."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.seen, self.ups = 0, [p for name, p in vit.named_parameters() if name.endswith("up")]

    def after_step(self, step: int, steps: int) -> None:
        self.seen += 1
        for up in self.ups:
            up.data.add_(0.01 * self.seen)


class CannotMerge(LowRank):
    def merged(self) -> nn.Module | None:
        return None


class DropsAlways(CannotMerge):
    def change(self, x: Tensor) -> Tensor:
        return super().change(F.dropout(x, 0.5))


class MixesImages(CannotMerge):
    def change(self, x: Tensor) -> Tensor:
        return super().change(x - x.mean(0))


class OneType(LowRank):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        rows = torch.arange(len(x))
        return out.index_add(0, rows, self.change(x).to(x.dtype))


# --- spoilt in what they leave ---------------------------------------------------------------------------------------


class Unsaved(LowRank):
    noise: Tensor

    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, r)
        self.register_buffer("noise", 1 + 0.3 * torch.randn(r), persistent=False)

    def change(self, x: Tensor) -> Tensor:
        return (x @ self.down.T * self.noise) @ self.up.T

    def merged(self) -> nn.Module | None:
        layer = deepcopy(self.base)
        layer.get_parameter("weight").data += self.up * self.noise @ self.down
        return layer


class MergesHalf(LowRank):
    """Has a bias and forgets it when it folds."""

    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, r)
        self.shift = nn.Parameter(torch.zeros(len(base.get_parameter("weight"))))

    def change(self, x: Tensor) -> Tensor:
        return super().change(x) + self.shift


class LeavesHook(LowRank):
    def __init__(self, base: nn.Module, r: int) -> None:
        super().__init__(base, r)
        base.register_forward_hook(lambda *_: None)


RUNS = "it runs"
UNCHANGED = "planning changes nothing"
AGREES = "planning twice agrees"
COUNTS = "counting needs no data"
TRAINS = "the count is what trains"
STARTS = "it starts as the pretrained network"
STAYS = "frozen tensors stay"
LEARNS = "every value learns"
EVALUATES = "evaluation is deterministic"
APART = "images are independent"
BF16 = "it works under bf16"
SEEDED = "the same seed gives the same bits"
RESUMES = "a resumed run ends with the same bits"
DELTA = "a delta restores it"
MERGES = "merged computes the same"
CLEAN = "the network is restored"
FIELDS = "its fields come back"
BUDGET = "the budget is met"

# the spoilt method, the rule meant for it, and those that fail with it because the same fault shows there, too
SPOILT: dict[str, tuple[type[Method], str, set[str]]] = {
    "raises in plan": (PlanRaises, RUNS, set()),
    "changes a weight in plan": (PlanWrites, UNCHANGED, set()),
    "leaves a hook in plan": (PlanHooks, UNCHANGED, set()),
    "chooses by the global generator": (PlanDraws, AGREES, {SEEDED}),
    "needs data to count": (NeedsData, COUNTS, set()),
    "miscounts": (spoilt(WrongSize), TRAINS, set()),
    "ignores its knob": (IgnoresKnob, BUDGET, set()),
    "takes twice the budget": (Greedy, BUDGET, set()),
    "has a field that cannot be hashed": (ListField, FIELDS, set()),
    "does not start at the pretrained network": (spoilt(RandomUp), STARTS, set()),
    "trains a frozen tensor": (spoilt(WritesBase), STAYS, {RESUMES, DELTA}),
    "lets weight decay leak": (DecayLeaks, STAYS, {RESUMES, DELTA}),
    "has a dead parameter": (spoilt(Dead), LEARNS, set()),
    "draws its start unseeded": (spoilt(Unseeded), SEEDED, set()),
    "forgets its callback's state": (spoilt(callback=Forgets), RESUMES, set()),
    "drops values in evaluation": (spoilt(DropsAlways, merges=False), EVALUATES, {APART, BF16, DELTA}),
    "mixes the images of a batch": (spoilt(MixesImages, merges=False), APART, set()),
    "breaks under bfloat16": (spoilt(OneType), BF16, set()),
    "does not save a buffer": (spoilt(Unsaved), DELTA, set()),
    "forgets its bias when it merges": (spoilt(MergesHalf), MERGES, set()),
    "promises to merge and does not": (spoilt(CannotMerge), MERGES, {CLEAN}),
    "merges and says that it cannot": (spoilt(merges=False), MERGES, set()),
    "leaves a hook": (spoilt(LeavesHook), CLEAN, set()),
}


def test_a_sound_method_keeps_every_rule() -> None:
    findings = check_method(Sound)
    assert failed(findings) == []
    assert len(findings) == len(STYLES) * len(RULES) + len(ONCE)
    assert {finding.verdict for finding in findings} == {"passed"}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_method_is_caught(fault: str) -> None:
    kind, meant, also = SPOILT[fault]
    findings = [finding for finding in check_method(kind, ("plain",)) if finding.verdict == "failed"]
    assert {finding.rule for finding in findings} == {meant, *also}


def test_every_rule_has_its_spoilt_method() -> None:
    assert {meant for _, meant, _ in SPOILT.values()} == {rule.__name__.replace("_", " ") for rule in (*RULES, *ONCE)}


def test_a_count_that_data_decide_may_be_an_aim() -> None:
    class Aims(Sound):
        exact = False

        def count(self, vit: nn.Module) -> int:
            return super().count(vit) + 100

    assert failed(check_method(Aims, ("plain",))) == []


def test_when_it_does_not_run_the_other_rules_are_skipped() -> None:
    first, *others = check_method(PlanRaises, ("clip",))
    assert first == Finding(RUNS, "clip", "failed", "Raised ZeroDivisionError: by a width of zero")
    assert {finding.verdict for finding in others} == {"skipped"}


def test_checking_leaves_the_generators_of_torch_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check_method(Sound, ("plain",))
    assert torch.equal(before, torch.get_rng_state())
