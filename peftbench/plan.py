"""What a method is: it looks at a network and says, in a Plan, what will train; here plans are counted and carried out.

    class LNTuning(Method):
        def plan(self, vit, probe):
            return Plan(tune=frozenset(n for n, _ in vit.named_parameters() if "norm" in n))

The head is no part of a plan: it always trains and belongs to the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from peftbench import sparse
from peftbench.errors import DeltaError, PluginError, RequestError

T = TypeVar("T")
Sizes: TypeAlias = Mapping[str, int | float | bool | str]
Scores: TypeAlias = dict[str, Tensor]  # backbone tensor -> one number an entry


class Graft(nn.Module):
    """Stands where `base` stood, computes with it and adds trainable tensors of its own.

    Built as `Kind(base, **sizes)`: sizes and base alone decide what it is, its tensors come from training or a file.
    """

    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the sizes of the subclass
        """Trainable parameters, by building one on the meta device; a subclass may know a formula."""
        copy = deepcopy(base).to("meta")
        theirs = {id(p) for p in copy.parameters()}
        copy.requires_grad_(requires_grad=False)
        with torch.device("meta"):
            built = cls(copy, **sizes)
        return sum(p.numel() for p in built.parameters() if p.requires_grad and id(p) not in theirs)

    def merged(self) -> nn.Module | None:
        """One plain module that computes the same, or None where the mathematics forbids it."""
        return None


@runtime_checkable
class Probe(Protocol):
    """Gradients of the training loss at the pretrained weights; nothing runs until asked."""

    def gradients(self) -> Iterator[Scores]:
        """One dict a training batch: the gradient of the batch's mean loss for every backbone tensor."""
        ...

    def estimate(self, kind: str, batches: int | None = None) -> tuple[Scores, Scores]:
        """A sum over the first `batches` batches (None: one pass over train), even and odd ones apart, kept on disk.

        Which sums there are, says `probe.ESTIMATES`.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """What a method will change, in the names of the bare backbone, before anything is changed."""

    tune: frozenset[str] = frozenset()  # tensors to train whole
    entries: Mapping[str, Tensor] = field(default_factory=dict)  # tensor -> ascending flat indices of what learns in it
    grafts: Mapping[str, tuple[type[Graft], Sizes]] = field(default_factory=dict)  # module -> what to put around it
    facts: Mapping[str, float] = field(default_factory=dict)  # what the record should say of it

    @property
    def empty(self) -> bool:
        """Whether only the head will train."""
        return not (self.tune or self.entries or self.grafts)

    def count(self, vit: nn.Module) -> int:
        """Trainable parameters without the head; changes nothing and works on the meta device."""
        whole = sum(_named(vit.get_parameter, name).numel() for name in self.tune)
        single = sum(len(index) for index in self.entries.values())
        added = [kind.size(_named(vit.get_submodule, site), **sizes) for site, (kind, sizes) in self.grafts.items()]
        return whole + single + sum(added)

    def carry_out(self, vit: nn.Module) -> Tuned:
        """Freeze `vit`, then change it in place.

        New tensors are drawn from torch's generator, on the device of `vit`. Raises PluginError, before any change,
        when the plan is not of this network.
        """
        self._refuse_misfit(vit)
        vit.requires_grad_(requires_grad=False)
        tensors: dict[str, Tensor] = {f"tune/{n}": vit.get_parameter(n).requires_grad_() for n in sorted(self.tune)}
        weights_first = sorted(self.entries, key=lambda n: (not n.endswith("weight"), n))  # a weight swaps its layer
        for name in weights_first:
            tensors[f"values/{name}"] = sparse.pack(vit, name, self.entries[name])
        grafts = []
        for site in sorted(self.grafts, key=lambda name: (-name.count("."), name)):  # inner modules before outer ones
            kind, sizes = self.grafts[site]
            graft, own = _graft(vit, site, kind, sizes)
            tensors |= {f"graft/{site}/{name}": tensor for name, tensor in own.items()}
            grafts.append(graft)
        return Tuned(self, vit, tensors, tuple(grafts))

    def _refuse_misfit(self, vit: nn.Module) -> None:
        for name in self.tune:
            _named(vit.get_parameter, name)
        for site in self.grafts:
            _named(vit.get_submodule, site)
        for name, index in self.entries.items():
            size = _named(vit.get_parameter, name).numel()
            if name in self.tune:
                raise PluginError(f"A plan trains {name} whole and entry by entry; it must choose one.")
            if not len(index) or index[0] < 0 or index[-1] >= size or not bool((index.diff() > 0).all()):
                raise PluginError(f"A plan's entries of {name} must be one or more ascending places below {size}.")


def _named(get: Callable[[str], T], name: str) -> T:
    """What a network holds under `name`. Raises PluginError when it holds nothing."""
    try:
        return get(name)
    except AttributeError:
        raise PluginError(f"A plan names {name!r}, which is not in this network.") from None


def _graft(vit: nn.Module, site: str, kind: type[Graft], sizes: Sizes) -> tuple[Graft, dict[str, Tensor]]:
    """Put a graft around the module at `site`; returns it and the tensors that are its own by identity."""
    base = vit.get_submodule(site)
    device = next((p.device for p in base.parameters()), torch.device("cpu"))
    flags = {parameter: parameter.requires_grad for parameter in base.parameters()}
    theirs = {id(t) for t in base.state_dict(keep_vars=True).values()}
    with device:
        graft = kind(base, **sizes)
    for parameter, free in flags.items():  # peft freezes what it finds, chosen or not
        parameter.requires_grad_(free)
    vit.set_submodule(site, graft)
    return graft, {n: t for n, t in graft.state_dict(keep_vars=True).items() if id(t) not in theirs}


@dataclass(frozen=True)
class Tuned:
    """A backbone whose plan was carried out, and a hold on everything that training may change in it."""

    plan: Plan
    vit: nn.Module
    tensors: Mapping[str, Tensor]  # "tune/NAME", "values/NAME", "graft/SITE/NAME" -> the live tensor
    grafts: tuple[Graft, ...]  # inner ones first

    def state(self) -> dict[str, Tensor]:
        """A copy of every tensor that training may change."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state. Raises DeltaError when it is not exactly this plan's."""
        if wrong := sorted(state.keys() ^ self.tensors.keys()):
            raise DeltaError(
                f"The saved state does not fit this plan: {wrong[0]} is in one of them only ({len(wrong)} such names)."
            )
        for name, tensor in self.tensors.items():
            if tensor.shape != state[name].shape:
                raise DeltaError(
                    f"The saved {name} has the shape {tuple(state[name].shape)}, not {tuple(tensor.shape)} as here."
                )
            with torch.no_grad():
                tensor.copy_(state[name])

    def merge(self) -> bool:
        """Fold what folds; True when the backbone is plain again, of the same tensors as before."""
        sparse.unpack(self.vit)  # first: a graft folds into the weight below it
        plain = True
        for graft in self.grafts:
            folded = graft.merged()
            plain &= folded is not None
            if folded is not None:
                self.vit.set_submodule(next(n for n, m in self.vit.named_modules() if m is graft), folded)
        return plain


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
    trains: ClassVar[bool] = True  # False: not even the head (majority)

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

    def gradients(self) -> Iterator[Scores]:
        """Refuses."""
        raise PluginError("A method asked for gradients while it was only being counted; let it override `count`.")

    def estimate(self, kind: str, batches: int | None = None) -> tuple[Scores, Scores]:  # noqa: ARG002 - the protocol's
        """Refuses."""
        raise PluginError(
            f"A method asked for the estimate {kind!r} while it was only being counted; let it override `count`."
        )
