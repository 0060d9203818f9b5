"""Training of single weights: only the chosen entries of each tensor are parameters and have optimizer state.

The weight of a Linear layer, or of a convolution of patches, gets a `SparseLayer`, whose backward computes the gradient
of the chosen entries and no other (`sparse_product`). Every other tensor (norms, biases, embeddings) gets `Packed`: its
dense gradient is small compared with the layers' products and is gathered.

The values of all of them lie in one vector, or in two where weight decay acts on some only (`PackedValues`): a step has
one parameter to update and a few operations to distribute its values, in place of several for each tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from peftbench.models.sparse_product import Pattern, SparseConvolution, SparseProduct
from peftbench.models.sparse_ways import expected


class SparseLayer(nn.Module):
    """A layer in whose weight only the entries of a pattern train: `values` holds them, `weight` has copies."""

    product: ClassVar[type[torch.autograd.Function]]
    values: Tensor  # a parameter, or a piece of the network's PackedValues
    weight: Tensor
    bias: Any  # a parameter, None, or what a parametrization computes

    def __init__(self, base: nn.Module, index: Tensor, *, decays: bool = True) -> None:
        nn.Module.__init__(self)
        vars(self).update({name: value for name, value in vars(base).items() if not name.startswith("_")})  # sizes
        vars(self)["base"] = base  # not a submodule, as both have the same parameters
        self.weight, self.bias = base.get_parameter("weight"), getattr(base, "bias", None)
        matrix = self.weight.detach().flatten(1)
        self.pattern = Pattern(index.to(matrix.device), (matrix.shape[0], matrix.shape[1]))
        self.pattern.settle(expected(self.pattern, matrix.dtype, matrix.device.type))
        self.values = nn.Parameter(matrix.flatten()[self.pattern.index].clone())
        self.decays = decays

    def write(self) -> None:
        """Write the values into `weight`; every forward does this, so code that changes values need not."""
        with torch.no_grad():
            values = self.values.detach().to(self.weight.dtype)
            self.weight.view(-1).index_copy_(0, self.pattern.index, values)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch's layers give it
        """Compute what the base would with the values in its weight."""
        self.write()
        out: Tensor = self.product.apply(input, self.weight, self.bias, self.values, self.pattern)
        return out

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Store the weight in the dtype to which autocast casts it in every pass; the values keep theirs."""
        self.weight = nn.Parameter(self.weight.to(dtype), requires_grad=False)
        self.pattern.settle(expected(self.pattern, dtype, self.weight.device.type))

    def merged(self) -> nn.Module:
        """Return the base with the values in place."""
        self.write()
        base: nn.Module = vars(self)["base"]
        base.weight, base.bias = self.weight, self.bias
        return base.train(self.training)


class SparseLinear(SparseLayer, nn.Linear):
    """The sparse layer of a Linear layer."""

    product = SparseProduct


class SparsePatches(SparseLayer, nn.Conv2d):
    """The sparse layer of a convolution whose patches neither overlap nor leave gaps."""

    product = SparseConvolution


class Packed(nn.Module):
    """Parametrization of any tensor: the original with `values` written over the entries at `index`."""

    values: Tensor  # a parameter, or a piece of the network's PackedValues
    index: Tensor

    def __init__(self, tensor: Tensor, index: Tensor, *, decays: bool) -> None:
        super().__init__()
        self.register_buffer("index", index.to(tensor.device))
        self.values = nn.Parameter(tensor.detach().flatten()[self.index].clone())
        self.decays = decays
        self.written: Tensor | None = None  # within a pass through the network, what `forward` returns

    def forward(self, original: Tensor) -> Tensor:
        """Return the tensor with the values in place, in the shape of the original."""
        if self.written is not None:
            return self.written
        return original.flatten().index_copy(0, self.index, self.values).view_as(original)


Site: TypeAlias = SparseLayer | Packed
GROUPS: Mapping[str, bool] = {"packed_decaying": True, "packed_free": False}  # PackedValues of a network: decay or not


class PackedValues(nn.Module):
    """The values of many sites in one trainable vector, of which each gets its piece at the start of every pass."""

    hooks: tuple[RemovableHandle, ...] = ()  # on the network
    frozen: Tensor  # the originals of all Packed sites, flat, one after another
    index: Tensor  # of their entries in it

    def __init__(self, layers: Sequence[SparseLayer], packed: Sequence[tuple[Packed, Tensor]], *, decays: bool) -> None:
        """`packed`: each with the tensor whose entries it trains."""
        super().__init__()
        self.decays = decays
        vars(self)["layers"], vars(self)["packed"] = list(layers), [site for site, _ in packed]  # not submodules
        self.shapes, self.sizes = [tensor.shape for _, tensor in packed], [len(site.values) for site in self.sites]
        self.values = nn.Parameter(torch.cat([site.values.detach() for site in self.sites]))
        originals = [tensor.detach().flatten() for _, tensor in packed]
        starts = accumulate(map(len, originals), initial=0)
        index = [site.index + start for (site, _), start in zip(packed, starts, strict=False)]
        self.register_buffer("frozen", torch.cat([self.values.new_empty(0), *originals]))
        self.register_buffer("index", torch.cat([torch.empty(0, dtype=torch.int64, device=self.values.device), *index]))
        for site in self.sites:
            del site.values  # the parameter
        self.release()

    @property
    def sites(self) -> list[Site]:
        """The sites in the order of their values."""
        return [*vars(self)["layers"], *vars(self)["packed"]]

    def spans(self) -> dict[Site, slice]:
        """Return where the values of each site lie in the vector."""
        ends = list(accumulate(self.sizes, initial=0))
        return {site: slice(*span) for site, span in zip(self.sites, pairwise(ends), strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        """Return x: in a chain of modules this one is there for its parameter only."""
        return x

    def write(self, *_: object) -> None:
        """Give every layer its piece and compute all Packed tensors at once; runs before a pass through the network."""
        layers, packed = vars(self)["layers"], vars(self)["packed"]
        *pieces, rest = self.values.split([*self.sizes[: len(layers)], len(self.index)])
        for layer, piece in zip(layers, pieces, strict=True):
            layer.values = piece
        if packed:
            written = self.frozen.index_copy(0, self.index, rest).split([shape.numel() for shape in self.shapes])
            for site, tensor, shape in zip(packed, written, self.shapes, strict=True):
                site.written = tensor.view(shape)

    def release(self, *_: object) -> None:
        """Give every site a view of its values without a gradient, for whatever reads them between two passes."""
        for site, piece in zip(self.sites, self.values.detach().split(self.sizes), strict=True):
            site.values = piece
        for site in vars(self)["packed"]:
            site.written = None


def pack(root: nn.Module, entries: Mapping[str, Tensor], *, decay: bool = True) -> dict[str, Tensor]:
    """Let only these entries (flat, ascending) of the named tensors train; return views of their values by name.

    Weight decay acts on them where it acts on the whole tensor, and nowhere without `decay`.
    """
    weights_first = sorted(entries, key=lambda name: (not name.endswith("weight"), name))  # a weight replaces its layer
    sites = {name: _pack_tensor(root, name, entries[name], decay=decay) for name in weights_first}
    views = dict[str, Tensor]()
    for name, decaying in GROUPS.items():
        group = {n: (site, tensor) for n, (site, tensor) in sites.items() if site.decays is decaying}
        if not group:
            continue
        layers = [site for site, _ in group.values() if isinstance(site, SparseLayer)]
        packed = [(site, tensor) for site, tensor in group.values() if isinstance(site, Packed)]
        values = PackedValues(layers, packed, decays=decaying)
        root.add_module(name, values)
        values.hooks = (root.register_forward_pre_hook(values.write), root.register_forward_hook(values.release))
        spans = values.spans()
        views |= {n: values.values.detach()[spans[site]] for n, (site, _) in group.items()}
    return {name: views[name] for name in weights_first}


def _pack_tensor(root: nn.Module, name: str, index: Tensor, *, decay: bool) -> tuple[Site, Tensor]:
    """Put a site in place of a tensor; return both."""
    path, _, leaf = name.rpartition(".")
    module = root.get_submodule(path)
    tensor = module.get_parameter(leaf)
    kind = _layer(module) if leaf == "weight" else None
    if kind:
        layer = kind(module, index, decays=decay)
        root.set_submodule(path, layer)
        return layer, tensor
    packed = Packed(tensor, index, decays=decay and decays(leaf, tensor))
    parametrize.register_parametrization(module, leaf, packed)
    return packed, tensor


def _layer(module: nn.Module) -> type[SparseLayer] | None:
    """Return the kind of sparse layer that can take the place of a module, None where there is none."""
    if isinstance(module, nn.Linear):
        return SparseLinear
    if type(module) is nn.Conv2d and module.groups == 1 and module.kernel_size == module.stride:
        tight = set(module.dilation) == {1} and module.padding in {(0, 0), "valid"}
        return SparsePatches if tight else None
    return None


def decays(leaf: str, tensor: Tensor) -> bool:
    """Return whether weight decay acts on a tensor: on matrices and kernels, not on vectors and embeddings."""
    return tensor.dim() >= 2 and leaf not in {"cls_token", "pos_embed", "reg_token"}  # noqa: PLR2004


def unpack(root: nn.Module) -> None:
    """Make every packed tensor plain again, with its trained values in place."""
    for name, values in list(root.named_children()):
        if isinstance(values, PackedValues):
            for hook in values.hooks:
                hook.remove()
            delattr(root, name)
    for module in list(root.modules()):
        for leaf in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
    for name, module in list(root.named_modules()):
        if isinstance(module, SparseLayer):
            root.set_submodule(name, module.merged())
