"""The contract of methods: a method reads a backbone and returns a Plan of what to train.

    @dataclass(frozen=True)
    class LNTuning(Method):
        def plan(self, vit, probe):
            return Plan(tune=frozenset(n for n, _ in vit.named_parameters() if "norm" in n))

The fields of the dataclass are the method's hyper-parameters: they appear in the record, in the job's id and on the
command line (`ln_tuning[field=value]`). `peftbench.core.fields.checked` in place of `dataclass(frozen=True)` makes one
that also checks the values of its fields, such as `r: AtLeast1 = 8`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeAlias

from torch import Tensor, nn

from peftbench.core.constants import Edge
from peftbench.errors import PluginError, RequestError
from peftbench.models.head import Head
from peftbench.models.plan import Plan, Probe, Scores

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # logits (n, classes), labels -> their mean loss
Fitted: TypeAlias = tuple[
    nn.Module, Mapping[str, float]
]  # features (B, D) -> logits (B, classes); columns of the curve


@dataclass(frozen=True)
class Method:
    """A frozen dataclass whose fields are the hyper-parameters; a plug-in must implement `plan` only."""

    version: ClassVar[int] = 1  # raised when a default or the computation changes
    knob: ClassVar[str | None] = None  # the field that a budget sets
    exact: ClassVar[bool] = True  # False: `count` is a target, what trains depends on the data
    trains: ClassVar[bool] = True  # False: not even the head trains (majority)
    identity: ClassVar[bool] = True  # at step 0 the network computes what the pretrained one computes
    merges: ClassVar[bool] = True  # what was trained can be folded into the backbone's own tensors
    compiles: ClassVar[bool] = True  # torch.compile supports a network with this plan
    aliases: ClassVar[Mapping[str, str]] = MappingProxyType({})  # other names of fields on the command line
    # values of fields at their default that tuning tries, too, each as one of the trials that every method gets
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = MappingProxyType({})
    idle: ClassVar[tuple[str, ...]] = ()  # suffixes of trained tensors that may get no gradient, beside key biases

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Choose what to train. Read `vit` and, if needed, gradients from `probe`; change neither."""
        raise NotImplementedError

    def count(self, vit: nn.Module) -> int:
        """Return the number of trainable parameters without the head; override it if `plan` needs data."""
        return self.plan(vit, NoProbe()).count(vit)

    @property
    def fits_features(self) -> bool:
        """Whether `fits` takes the place of the recipe's training steps; the plan must then be empty."""
        return False

    @property
    def has_learning_rate(self) -> bool:
        """Whether the recipe's learning rate has an effect, so that it can be tuned."""
        return self.trains and not self.fits_features

    def fits(self, features: Tensor, labels: Tensor, head: Head, loss: Loss, *, choose: bool) -> Iterator[Fitted]:
        """Yield classifiers of the frozen features (n, D) of the training images, with numbers for the curve.

        The recipe's selection rule chooses among them; with `choose` there is a validation part. A method that trains
        the head changes `head` in place before each yield.
        """
        raise NotImplementedError

    def sizes(self, vit: nn.Module) -> Sequence[float]:  # noqa: ARG002 - used by methods with a knob
        """Return the values of the knob that are legal on this network, ascending."""
        message = f"{type(self).__name__} has the knob {self.knob} but lists no legal values: implement `sizes`."
        raise PluginError(message) if self.knob else RequestError(f"{type(self).__name__} has no size to choose.")

    def within(self, budget: int, vit: nn.Module) -> Match:
        """Return the legal size whose count is nearest to `budget` trainable parameters, ties to the smaller."""
        return nearest(self, budget, {value: self.at_size(value).count(vit) for value in self.sizes(vit)})

    def at_size(self, value: float) -> Self:
        """Return the same method with its knob at `value`."""
        return replace(self, **{str(self.knob): value})

    def alternatives(self) -> tuple[tuple[str, Any], ...]:
        """Return the names and values in `tuned` of the fields that are at their default."""
        return tuple(
            (field.name, value)
            for field in fields(self)
            if getattr(self, field.name) == field.default
            for value in self.tuned.get(field.name, ())
        )

    def values(self) -> dict[str, Any]:
        """Return every hyper-parameter by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Match:
    """The size of a method that is nearest to a budget."""

    method: Method
    reached: int  # trainable parameters without the head
    edge: Edge | None = None  # the budget is below or above all sizes of the method


def nearest(method: Method, budget: int, counts: Mapping[float, int]) -> Match:
    """Return the value of the knob whose count is nearest to the budget, ties to the smaller count."""
    value = min(counts, key=lambda size: (abs(counts[size] - budget), counts[size]))
    return Match(method.at_size(value), counts[value], edge(budget, list(counts.values())))


def edge(budget: int, counts: Sequence[int]) -> Edge | None:
    """Return whether a budget lies below or above every count."""
    return "floor" if budget < min(counts) else "ceiling" if budget > max(counts) else None


class NoProbe:
    """A probe for counting: every request for gradients raises PluginError."""

    seed = 0

    def gradients(self) -> Iterator[Scores]:
        """Raise PluginError."""
        raise PluginError("A method requests gradients while its parameters are counted; override `count`.")

    def estimate(self, kind: str, batches: int | None = None) -> tuple[Scores, Scores]:  # noqa: ARG002 - the protocol's
        """Raise PluginError."""
        raise PluginError(
            f"A method requests the estimate {kind!r} while its parameters are counted; override `count`."
        )
