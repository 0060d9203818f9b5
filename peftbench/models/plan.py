"""Plans: which tensors, which single entries and which adapters train. This module counts plans and applies them.

Methods (`method.py`) make plans. The head is not part of a plan: it always trains and belongs to the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from peftbench.errors import DeltaError, PluginError
from peftbench.models import sparse

T = TypeVar("T")
Sizes: TypeAlias = Mapping[str, int | float | bool | str]
Scores: TypeAlias = dict[str, Tensor]  # name of a backbone tensor -> a value for each entry


class Graft(nn.Module):
    """An adapter: a module that replaces `base`, calls it and adds trainable tensors of its own.

    It is built as `Kind(base, **sizes)`. Base and sizes determine its structure, so a delta stores only the sizes and
    the tensors.
    """

    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the sizes of the subclass
        """Return the trainable parameters, by building one on the meta device; a subclass may use a formula."""
        copy = deepcopy(base).to("meta")
        given = [copy, *(value for value in sizes.values() if isinstance(value, nn.Module))]
        foreign = {id(p) for module in given for p in module.parameters()}
        copy.requires_grad_(requires_grad=False)
        with torch.device("meta"):
            built = cls(copy, **sizes)
        return sum(p.numel() for p in built.parameters() if p.requires_grad and id(p) not in foreign)

    def merged(self) -> nn.Module | None:
        """Return one plain module that computes the same, or None if that is impossible."""
        return None

    def after_merge(self, vit: nn.Module) -> None:
        """Change other tensors of the network that the merge requires; called after `merged` replaced the adapter."""


class Shared(nn.Module):
    """Tensors that several adapters use: built once as `Kind(**sizes)` and passed to every adapter that names it."""


class Callback(nn.Module):
    """What a method does besides the optimizer's step: built as `Kind(vit, **sizes)` after the plan was applied.

    Its buffers are part of the checkpoint, so that a resumed run gives the same bits, and not of the delta.
    """

    def penalty(self) -> Tensor | None:
        """Return a scalar to add to the loss of every step, or None."""
        return None

    def after_step(self, step: int, steps: int) -> None:
        """Run after the optimizer's step number `step` of 0..steps-1, before the gradients are reset."""


@runtime_checkable
class Probe(Protocol):
    """Gradients of the training loss at the pretrained weights, computed on demand."""

    @property
    def seed(self) -> int:
        """The job's seed, for a method's random choices: so the spread over seeds includes them."""
        ...

    def gradients(self) -> Iterator[Scores]:
        """Yield for each training batch the gradient of its mean loss for every backbone tensor."""
        ...

    def estimate(self, kind: str, batches: int | None = None) -> tuple[Scores, Scores]:
        """Return the sums over the even and the odd ones of the first `batches` batches (None: one pass over train).

        `kind` is a key of `gradient_probe.ESTIMATES`. The sums are cached on disk.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """What a method will train, by the names of the unchanged backbone."""

    tune: frozenset[str] = frozenset()  # tensors that train whole
    entries: Mapping[str, Tensor] = field(default_factory=dict)  # tensor -> ascending flat indices that train
    grafts: Mapping[str, tuple[type[Graft], Sizes]] = field(default_factory=dict)  # module -> the adapter around it
    shared: Mapping[str, tuple[type[Shared], Sizes]] = field(
        default_factory=dict
    )  # NAME -> module for the adapters with the size shared=NAME
    callback: tuple[type[Callback], Sizes] | None = None
    decay_entries: bool = True  # False: no weight decay on single entries of matrices, as on vectors
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)  # tensor of `tune` -> multiple of the rate
    facts: Mapping[str, float] = field(default_factory=dict)  # numbers for the record

    @property
    def empty(self) -> bool:
        """Whether only the head trains."""
        return not (self.tune or self.entries or self.grafts)

    def count(self, vit: nn.Module) -> int:
        """Return the trainable parameters without the head; works on the meta device and changes nothing."""
        whole = sum(_get(vit.get_parameter, name).numel() for name in self.tune)
        single = sum(len(index) for index in self.entries.values())
        with torch.device("meta"):
            shared = self._build_shared()
        in_shared = sum(p.numel() for module in shared.values() for p in module.parameters() if p.requires_grad)
        added = [
            kind.size(_get(vit.get_submodule, site), **_with_shared(sizes, shared))
            for site, (kind, sizes) in self.grafts.items()
        ]
        return whole + single + in_shared + sum(added)

    def _build_shared(self) -> dict[str, Shared]:
        return {name: kind(**sizes) for name, (kind, sizes) in sorted(self.shared.items())}

    def carry_out(self, vit: nn.Module) -> Tuned:
        """Freeze `vit` and change it in place.

        New tensors are drawn from torch's generator, on the device of `vit`. Raises PluginError, before any change,
        if the plan does not fit this network.
        """
        self._refuse_misfit(vit)
        vit.requires_grad_(requires_grad=False)
        tensors: dict[str, Tensor] = {f"tune/{n}": vit.get_parameter(n).requires_grad_() for n in sorted(self.tune)}
        packed = sparse.pack(vit, self.entries, decay=self.decay_entries)
        tensors |= {f"values/{name}": values for name, values in packed.items()}
        with next(vit.parameters()).device:
            shared = self._build_shared()
        for name, module in shared.items():
            tensors |= {f"shared/{name}/{n}": t for n, t in _cast(vit, module.state_dict(keep_vars=True)).items()}
        grafts = []
        for site in sorted(self.grafts, key=lambda name: (-name.count("."), name)):  # inner modules before outer ones
            kind, sizes = self.grafts[site]
            graft, own = _wrap(vit, site, kind, _with_shared(sizes, shared))
            tensors |= {f"graft/{site}/{name}": tensor for name, tensor in own.items()}
            grafts.append(graft)
        callback = self.callback[0](vit, **self.callback[1]) if self.callback else None
        if callback is not None:
            tensors |= {f"callback/{name}": buffer for name, buffer in callback.named_buffers()}
        return Tuned(self, vit, tensors, tuple(grafts), callback)

    def _refuse_misfit(self, vit: nn.Module) -> None:
        for name in self.tune:
            _get(vit.get_parameter, name)
        for site in self.grafts:
            _get(vit.get_submodule, site)
        if strange := sorted(self.lr_multipliers.keys() - self.tune):
            raise PluginError(f"The plan's lr_multipliers name {strange[0]}, which does not train whole.")
        for name, index in self.entries.items():
            size = _get(vit.get_parameter, name).numel()
            if name in self.tune:
                raise PluginError(f"The plan trains {name} both whole and by entries; choose one.")
            if not len(index) or index[0] < 0 or index[-1] >= size or not bool((index.diff() > 0).all()):
                raise PluginError(
                    f"The plan's entries of {name} must be ascending indices from 0 to {size - 1}, at least one."
                )


def _get(get: Callable[[str], T], name: str) -> T:
    """Return the part of a network called `name`. Raises PluginError if there is none."""
    try:
        return get(name)
    except AttributeError:
        raise PluginError(f"The plan names {name!r}, which is not in this network.") from None


def _with_shared(sizes: Sizes, shared: Mapping[str, Shared]) -> dict[str, Any]:
    """Return the sizes of an adapter, with the shared module in place of its name."""
    if "shared" not in sizes:
        return dict(sizes)
    if sizes["shared"] not in shared:
        raise PluginError(f"An adapter names the shared module {sizes['shared']!r}, which is not in its plan.")
    return {**sizes, "shared": shared[str(sizes["shared"])]}


def _wrap(vit: nn.Module, site: str, kind: type[Graft], sizes: Mapping[str, Any]) -> tuple[Graft, dict[str, Tensor]]:
    """Replace the module at `site` by an adapter around it; return the adapter and its own tensors by name."""
    base = vit.get_submodule(site)
    trains = {parameter: parameter.requires_grad for parameter in base.parameters()}
    given = [base, *(value for value in sizes.values() if isinstance(value, nn.Module))]
    foreign = {id(t) for module in given for t in module.state_dict(keep_vars=True).values()}
    with next(vit.parameters()).device:  # base may be an Identity, without parameters
        graft = kind(base, **sizes)
    for parameter, trainable in trains.items():  # peft freezes every parameter it finds
        parameter.requires_grad_(trainable)
    vit.set_submodule(site, graft)
    return graft, _cast(vit, {n: t for n, t in graft.state_dict(keep_vars=True).items() if id(t) not in foreign})


def _cast(vit: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cast floating-point tensors to the dtype of the network, in place; return all tensors."""
    precision = next(vit.parameters()).dtype
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(precision)
    return tensors


@dataclass(frozen=True)
class Tuned:
    """A backbone to which a plan was applied, and all tensors that training may change."""

    plan: Plan
    vit: nn.Module
    tensors: Mapping[str, Tensor]  # "tune/NAME", "values/NAME", "graft/SITE/NAME", "shared/..." -> the tensor in use
    grafts: tuple[Graft, ...]  # inner modules first
    callback: Callback | None = None

    @property
    def lr_multipliers(self) -> dict[Tensor, float]:
        """The multiples of the recipe's learning rate by live tensor, where they are not 1."""
        return {self.tensors[f"tune/{name}"]: factor for name, factor in self.plan.lr_multipliers.items()}

    def state(self) -> dict[str, Tensor]:
        """Return a copy of every tensor that training may change."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load a state. Raises DeltaError if its names or shapes differ from this plan's."""
        if wrong := sorted(state.keys() ^ self.tensors.keys()):
            raise DeltaError(
                f"The saved state does not fit this plan: {wrong[0]} is in only one of them ({len(wrong)} such names)."
            )
        for name, tensor in self.tensors.items():
            if tensor.shape != state[name].shape:
                raise DeltaError(
                    f"The saved {name} has the shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}."
                )
            with torch.no_grad():
                tensor.copy_(state[name])

    def cast_frozen(self, autocast: torch.dtype | None) -> None:
        """Store frozen matrices in the dtype to which autocast casts them in every pass: same bits, half the memory.

        Only those of plain layers: an adapter may use a weight directly, and with a callback nothing is cast. From then
        on the network is valid only for passes under this autocast.
        """
        if autocast is None or self.callback is not None:
            return
        adapted = {module for graft in self.grafts for module in graft.modules()}
        for module in [module for module in self.vit.modules() if module not in adapted]:
            if isinstance(module, sparse.SparseLayer):
                module.cast_frozen(autocast)
            elif parametrize.type_before_parametrizations(module) in {nn.Linear, nn.Conv2d}:
                weight = module.get_parameter("weight")
                if weight.dtype == torch.float32 and not weight.requires_grad:
                    module.register_parameter("weight", nn.Parameter(weight.to(autocast), requires_grad=False))

    def merge(self) -> bool:
        """Merge what can be merged; return whether the backbone has its original tensors again and no adapter."""
        sparse.unpack(self.vit)  # first: an adapter is merged into the weight of its base
        plain = True
        for graft in self.grafts:
            merged = graft.merged()
            plain &= merged is not None
            if merged is not None:
                self.vit.set_submodule(next(n for n, m in self.vit.named_modules() if m is graft), merged)
                graft.after_merge(self.vit)
        return plain
