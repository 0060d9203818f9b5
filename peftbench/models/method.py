"""What a method is: it looks at a network and says, in a Plan, what will train.

    @dataclass(frozen=True)
    class LNTuning(Method):
        def plan(self, vit, probe):
            return Plan(tune=frozenset(n for n, _ in vit.named_parameters() if "norm" in n))

Its fields are its hyper-parameters, so the record, the id and the command line come free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from torch import nn

from peftbench.errors import PluginError, RequestError
from peftbench.models.plan import Plan, Probe, Scores


@dataclass(frozen=True)
class Fit:
    """A method brought to a budget."""

    method: Method
    reached: int  # trainable parameters, head excluded
    edge: Literal["floor", "ceiling"] | None = None  # the budget lies outside of what it can reach


@dataclass(frozen=True)
class Method:
    """A frozen dataclass whose fields are the hyper-parameters; `plan` is all that a plug-in must write."""

    version: ClassVar[int] = 1  # raised when a default or the computation changes
    knob: ClassVar[str | None] = None  # the field that a budget turns
    exact: ClassVar[bool] = True  # `count` says what will train; False: what is aimed at, the data decide
    trains: ClassVar[bool] = True  # False: not even the head (majority)
    identity: ClassVar[bool] = True  # step 0 computes what the pretrained network computes
    merges: ClassVar[bool] = True  # what was trained folds into the backbone's own tensors
    compiles: ClassVar[bool] = True  # torch.compile takes a network that carries its plan
    idle: ClassVar[tuple[str, ...]] = ()  # endings of trained tensors that may go without a gradient, beside key biases

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Choose what to train. Reads `vit` and, if it must, gradients from `probe`; changes neither."""
        raise NotImplementedError

    def count(self, vit: nn.Module) -> int:
        """Trainable parameters without the head. Override where `plan` would need data for it."""
        return self.plan(vit, NoProbe()).count(vit)

    def sizes(self, vit: nn.Module) -> Sequence[float]:  # noqa: ARG002 - for those that have some
        """The legal values of the knob on this network, those worth trying."""
        message = f"{type(self).__name__} names the knob {self.knob} but lists no legal values for it (method `sizes`)."
        raise PluginError(message) if self.knob else RequestError(f"{type(self).__name__} has no size to choose.")

    def within(self, budget: int, vit: nn.Module) -> Fit:
        """The legal size whose count is nearest to the budget, ties to the smaller."""
        options = [(self.turned(value).count(vit), value) for value in self.sizes(vit)]
        reached, value = min(options, key=lambda option: (abs(option[0] - budget), option[0]))
        return Fit(self.turned(value), reached, edge(budget, [count for count, _ in options]))

    def turned(self, value: float) -> Self:
        """The same method with its knob at `value`."""
        return replace(self, **{str(self.knob): value})

    def values(self) -> dict[str, Any]:
        """Every hyper-parameter by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def edge(budget: int, counts: Sequence[int]) -> Literal["floor", "ceiling"] | None:
    """Whether a budget lies below or above everything that can be reached."""
    return "floor" if budget < min(counts) else "ceiling" if budget > max(counts) else None


class NoProbe:
    """Stands where a method must not look at data: counting."""

    seed = 0

    def gradients(self) -> Iterator[Scores]:
        """Refuses."""
        raise PluginError("A method asked for gradients while it was only being counted; let it override `count`.")

    def estimate(self, kind: str, batches: int | None = None) -> tuple[Scores, Scores]:  # noqa: ARG002 - the protocol's
        """Refuses."""
        raise PluginError(
            f"A method asked for the estimate {kind!r} while it was only being counted; let it override `count`."
        )
