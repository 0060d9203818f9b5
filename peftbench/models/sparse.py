"""Training of single weights: only the chosen entries of each tensor are parameters and have optimizer state.

The weight of a Linear layer, or of a convolution of patches, gets a `SparseLayer`, whose backward computes the gradient
of the chosen entries and no other (`sparse_product`). Every other tensor (norms, biases, embeddings) gets `Packed`: its
dense gradient is small compared with the layers' products, is gathered and freed at once.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from peftbench.models.sparse_product import Pattern, SparseConvolution, SparseProduct
from peftbench.models.sparse_ways import expected


class SparseLayer(nn.Module):
    """A layer in whose weight only the entries of a pattern train: `values` holds them, `weight` has copies."""

    product: ClassVar[type[torch.autograd.Function]]
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

    index: Tensor

    def __init__(self, tensor: Tensor, index: Tensor, *, decays: bool) -> None:
        super().__init__()
        self.register_buffer("index", index.to(tensor.device))
        self.values = nn.Parameter(tensor.detach().flatten()[self.index].clone())
        self.decays = decays

    def forward(self, original: Tensor) -> Tensor:
        """Return the tensor with the values in place, in the shape of the original."""
        if len(self.index) == original.numel():
            return self.values.view_as(original)
        return original.flatten().index_copy(0, self.index, self.values).view_as(original)


def pack(root: nn.Module, name: str, index: Tensor, *, decay: bool = True) -> nn.Parameter:
    """Let only the entries at `index` (flat, ascending) of the tensor `name` train; return their packed values.

    Weight decay acts on them where it acts on the whole tensor, and nowhere without `decay`.
    """
    site, _, leaf = name.rpartition(".")
    module = root.get_submodule(site)
    kind = _layer(module) if leaf == "weight" else None
    if kind:
        layer = kind(module, index, decays=decay)
        root.set_submodule(site, layer)
        return layer.values
    tensor = module.get_parameter(leaf)
    packed = Packed(tensor, index, decays=decay and decays(leaf, tensor))
    parametrize.register_parametrization(module, leaf, packed)
    return packed.values


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
    for module in list(root.modules()):
        for leaf in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
    for name, module in list(root.named_modules()):
        if isinstance(module, SparseLayer):
            root.set_submodule(name, module.merged())
