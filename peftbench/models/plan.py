"""What a plan is: which tensors, which entries and which grafts will train; here plans are counted and carried out.

The head is no part of a plan: it always trains and belongs to the recipe. `method.py` says who makes plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from peftbench.errors import DeltaError, PluginError
from peftbench.models import sparse

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
        given = [copy, *(value for value in sizes.values() if isinstance(value, nn.Module))]
        theirs = {id(p) for module in given for p in module.parameters()}
        copy.requires_grad_(requires_grad=False)
        with torch.device("meta"):
            built = cls(copy, **sizes)
        return sum(p.numel() for p in built.parameters() if p.requires_grad and id(p) not in theirs)

    def merged(self) -> nn.Module | None:
        """One plain module that computes the same, or None where the mathematics forbids it."""
        return None

    def settle(self, vit: nn.Module) -> None:
        """Called on the network when `merged` has taken this graft's place, for what else must change in it then."""


class Shared(nn.Module):
    """Tensors that several grafts compute with: built once as `Kind(**sizes)`, handed to each graft that names it."""


class Callback(nn.Module):
    """What a method does beside the gradient's step: built as `Kind(vit, **sizes)` when the plan was carried out.

    Its buffers belong to the checkpoint, so that an interrupted run goes on with the same bits; no delta holds them.
    """

    def penalty(self) -> Tensor | None:
        """A scalar that the loss of every step gets on top."""
        return None

    def after_step(self, step: int, steps: int) -> None:
        """Called behind the optimizer's step number `step` of 0..steps-1, while the gradients are still there."""


@runtime_checkable
class Probe(Protocol):
    """Gradients of the training loss at the pretrained weights; nothing runs until asked."""

    @property
    def seed(self) -> int:
        """The job's: what a method draws a random choice from, so that error bars over seeds hold its luck, too."""
        ...

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
    shared: Mapping[str, tuple[type[Shared], Sizes]] = field(
        default_factory=dict
    )  # NAME -> what the grafts of shared=NAME use
    callback: tuple[type[Callback], Sizes] | None = None
    decay_entries: bool = True  # False: weight decay leaves single entries of matrices alone, as if they were a vector
    facts: Mapping[str, float] = field(default_factory=dict)  # what the record should say of it

    @property
    def empty(self) -> bool:
        """Whether only the head will train."""
        return not (self.tune or self.entries or self.grafts)

    def count(self, vit: nn.Module) -> int:
        """Trainable parameters without the head; changes nothing and works on the meta device."""
        whole = sum(_named(vit.get_parameter, name).numel() for name in self.tune)
        single = sum(len(index) for index in self.entries.values())
        with torch.device("meta"):
            shared = self._build_shared()
        common = sum(p.numel() for module in shared.values() for p in module.parameters() if p.requires_grad)
        added = [
            kind.size(_named(vit.get_submodule, site), **_handed(sizes, shared))
            for site, (kind, sizes) in self.grafts.items()
        ]
        return whole + single + common + sum(added)

    def _build_shared(self) -> dict[str, Shared]:
        return {name: kind(**sizes) for name, (kind, sizes) in sorted(self.shared.items())}

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
            tensors[f"values/{name}"] = sparse.pack(vit, name, self.entries[name], decay=self.decay_entries)
        with next(vit.parameters()).device:
            shared = self._build_shared()
        for name, module in shared.items():
            tensors |= {f"shared/{name}/{n}": t for n, t in _like(vit, module.state_dict(keep_vars=True)).items()}
        grafts = []
        for site in sorted(self.grafts, key=lambda name: (-name.count("."), name)):  # inner modules before outer ones
            kind, sizes = self.grafts[site]
            graft, own = _graft(vit, site, kind, _handed(sizes, shared))
            tensors |= {f"graft/{site}/{name}": tensor for name, tensor in own.items()}
            grafts.append(graft)
        callback = self.callback[0](vit, **self.callback[1]) if self.callback else None
        if callback is not None:
            tensors |= {f"callback/{name}": buffer for name, buffer in callback.named_buffers()}
        return Tuned(self, vit, tensors, tuple(grafts), callback)

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


def _handed(sizes: Sizes, shared: Mapping[str, Shared]) -> dict[str, Any]:
    """The sizes of a graft, with the module itself where they name a shared one."""
    if "shared" not in sizes:
        return dict(sizes)
    if sizes["shared"] not in shared:
        raise PluginError(f"A graft names the shared module {sizes['shared']!r}, which its plan does not hold.")
    return {**sizes, "shared": shared[str(sizes["shared"])]}


def _graft(vit: nn.Module, site: str, kind: type[Graft], sizes: Mapping[str, Any]) -> tuple[Graft, dict[str, Tensor]]:
    """Put a graft around the module at `site`; returns it and the tensors that are its own by identity."""
    base = vit.get_submodule(site)
    flags = {parameter: parameter.requires_grad for parameter in base.parameters()}
    given = [base, *(value for value in sizes.values() if isinstance(value, nn.Module))]
    theirs = {id(t) for module in given for t in module.state_dict(keep_vars=True).values()}
    with next(vit.parameters()).device:  # base may be an Identity, which has none
        graft = kind(base, **sizes)
    for parameter, free in flags.items():  # peft freezes what it finds, chosen or not
        parameter.requires_grad_(free)
    vit.set_submodule(site, graft)
    return graft, _like(vit, {n: t for n, t in graft.state_dict(keep_vars=True).items() if id(t) not in theirs})


def _like(vit: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, those of numbers brought to the precision of the network in place."""
    precision = next(vit.parameters()).dtype
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(precision)
    return tensors


@dataclass(frozen=True)
class Tuned:
    """A backbone whose plan was carried out, and a hold on everything that training may change in it."""

    plan: Plan
    vit: nn.Module
    tensors: Mapping[str, Tensor]  # "tune/NAME", "values/NAME", "graft/SITE/NAME", "shared/..." -> the live tensor
    grafts: tuple[Graft, ...]  # inner ones first
    callback: Callback | None = None

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

    def slim(self, autocast: torch.dtype | None) -> None:
        """Hold frozen matrices in the type to which autocast casts them anew in each pass: same bits, half the bytes.

        Of plain layers only. Those within grafts stay, for a graft may compute with a weight itself, and all stay where
        a callback sees the network. From here on the network is good for passes under this autocast only.
        """
        if autocast is None or self.callback is not None:
            return
        within = {module for graft in self.grafts for module in graft.modules()}
        for module in self.vit.modules():
            if type(module) in {nn.Linear, nn.Conv2d} and module not in within:
                weight = module.get_parameter("weight")
                if weight.dtype == torch.float32 and not weight.requires_grad:
                    module.register_parameter("weight", nn.Parameter(weight.to(autocast), requires_grad=False))

    def merge(self) -> bool:
        """Fold what folds; True when the backbone is plain again, of the same tensors as before."""
        sparse.unpack(self.vit)  # first: a graft folds into the weight below it
        plain = True
        for graft in self.grafts:
            folded = graft.merged()
            plain &= folded is not None
            if folded is not None:
                self.vit.set_submodule(next(n for n, m in self.vit.named_modules() if m is graft), folded)
                graft.settle(self.vit)
        return plain
