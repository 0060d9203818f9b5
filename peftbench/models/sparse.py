"""Training of single weights: their values are packed in one vector, so that optimizer state exists for them only.

A Linear weight gets `SparseLinear`, whose backward computes the gradient of the chosen entries in the cheapest of three
ways: the product of only the rows and columns that hold any, a product sampled at the entries, or the dense product
from which the entries are gathered. Every other tensor (norms, biases, embeddings, the patch kernel) gets `Packed`: its
dense gradient is small compared with the layers' products, is gathered and freed at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

Way = Literal["block", "sampled", "dense"]
# Break-even points of the ways, measured on a CPU (the dense product is 1; a block costs about its share of the matrix,
# a sampled product .1 to .2 up to 2% of the entries, .3 to .4 at 5%; in bfloat16, where it must go through float32 and
# the dense product is three times as fast, about .5 up to 1%):
BLOCK = 0.25  # of the matrix: a larger block costs more than the dense product
SMALL_BLOCK = 0.1  # of the matrix: a smaller block is the cheapest way
SAMPLED = {torch.float32: 0.05, torch.float64: 0.05, torch.bfloat16: 0.01}  # share of the entries


class SparseProduct(torch.autograd.Function):
    """`x @ weight.T + bias`, with a gradient for `values`, the chosen entries of `weight`, and none for the rest."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context has no public type
        x: Float[Tensor, "*batch in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        values: Float[Tensor, " chosen"],
        pattern: Pattern,
    ) -> Float[Tensor, "*batch out"]:
        """x (..., in), weight (out, in), bias (out,), values (k,) -> (..., out)."""
        if torch.is_autocast_enabled(x.device.type):
            x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
        seen = x.reshape(-1, x.shape[-1])
        ctx.pattern, ctx.shape, ctx.dtypes = pattern, x.shape, (values.dtype, bias.dtype if bias is not None else None)
        ctx.way = pattern.way(seen)
        ctx.save_for_backward(seen.index_select(1, pattern.columns) if ctx.way == "block" else seen, weight)
        return F.linear(x, weight, bias.to(x.dtype) if bias is not None else None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, bias and values."""
        seen, weight = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)
        flat, (values_type, bias_type) = grad.reshape(-1, grad.shape[-1]), ctx.dtypes
        of_x = (grad @ weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        of_bias = flat.sum(0, dtype=bias_type) if ctx.needs_input_grad[2] else None
        of_values = ctx.pattern.gather(flat, seen, ctx.way).to(values_type) if ctx.needs_input_grad[3] else None
        return of_x, None, of_bias, of_values, None


class Pattern(nn.Module):
    """Positions of the chosen entries of a matrix: the rows and columns that hold any, and places in that block."""

    index: Tensor
    rows: Tensor
    columns: Tensor
    place: Tensor
    starts: Tensor
    column: Tensor

    def __init__(self, index: Int64[Tensor, " chosen"], shape: tuple[int, int]) -> None:
        """Compute the positions from `index`, flat and ascending."""
        super().__init__()
        rows, of_row = torch.unique(index // shape[1], return_inverse=True)
        columns, of_column = torch.unique(index % shape[1], return_inverse=True)
        self.shape = shape
        self.block = len(rows) * len(columns) / (shape[0] * shape[1])
        self.share = len(index) / (shape[0] * shape[1])
        starts = torch.searchsorted(index, torch.arange(shape[0] + 1, device=index.device) * shape[1])
        self.register_buffer("index", index)
        for name, value in (
            ("rows", rows),
            ("columns", columns),
            ("place", of_row * len(columns) + of_column),
            ("starts", starts),
            ("column", index % shape[1]),
        ):
            self.register_buffer(name, value, persistent=False)

    def way(self, seen: Tensor) -> Way:
        """Return the cheapest way for an input of this device and dtype."""
        sampled = seen.device.type == "cpu" and not torch.compiler.is_compiling() and seen.dtype in SAMPLED
        if self.block < SMALL_BLOCK:
            return "block"
        if sampled and self.share <= SAMPLED[seen.dtype]:
            return "sampled"
        return "block" if self.block < BLOCK else "dense"

    def gather(
        self, grad: Float[Tensor, "batch out"], seen: Float[Tensor, "batch in"], way: Way
    ) -> Float[Tensor, " chosen"]:
        """Return the gradient (k,) of the entries from grad (B, out) and input (B, in), or (B, columns) for a block."""
        if way == "block":
            return (grad.index_select(1, self.rows).T @ seen).flatten()[self.place]
        if way == "dense":
            return (grad.T @ seen).flatten()[self.index]
        wide = torch.promote_types(grad.dtype, torch.float32)
        chosen: Tensor = torch.ops.peftbench.sampled(grad.to(wide), seen.to(wide), self.starts, self.column)
        return chosen


def _sampled(grad: Tensor, seen: Tensor, starts: Tensor, column: Tensor) -> Tensor:
    """Return the entries (k,) of grad (B, out).T @ seen (B, in) at the places of a CSR pattern; compute no others."""
    zeros = torch.zeros(len(column), dtype=grad.dtype)
    where = _csr(starts, column, zeros, (grad.shape[1], seen.shape[1]))
    product: Tensor = torch.sparse.sampled_addmm(where, grad.T.contiguous(), seen, beta=0.0)
    return product.values()


# A registered operator, so that passes on fake tensors know its shape and FLOP counters its cost.
_OPERATORS = torch.library.Library("peftbench", "DEF")
_OPERATORS.define("sampled(Tensor grad, Tensor seen, Tensor starts, Tensor column) -> Tensor")
_OPERATORS.impl("sampled", _sampled, "CPU")
torch.library.register_fake(
    "peftbench::sampled", lambda grad, _seen, _starts, column: grad.new_empty(len(column)), lib=_OPERATORS
)


def sampled_flops(grad: Sequence[int], _seen: object, _starts: object, column: Sequence[int], **_: object) -> int:
    """Return the operator's FLOPs from the shapes of its inputs; a multiply-add is two."""
    return 2 * grad[0] * column[0]


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a sparse CSR matrix, without torch's warning that these are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


class SparseLinear(nn.Linear):
    """A Linear layer in whose weight only the entries of a pattern train: `values` holds them, `weight` has copies."""

    def __init__(self, base: nn.Linear, index: Tensor, *, decays: bool = True) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.pattern = Pattern(index.to(base.weight.device), (base.out_features, base.in_features))
        self.values = nn.Parameter(base.weight.detach().flatten()[self.pattern.index].clone())
        self.decays = decays

    def write(self) -> None:
        """Write the values into `weight`; every forward does this, so code that changes values need not."""
        with torch.no_grad():
            self.weight.view(-1).index_copy_(0, self.pattern.index, self.values.detach())

    def forward(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:  # noqa: A002 - nn.Linear's own name
        """(..., in) -> (..., out)."""
        self.write()
        out: Tensor = SparseProduct.apply(input, self.weight, self.bias, self.values, self.pattern)
        return out

    def merged(self) -> nn.Linear:
        """Return a plain layer with the values in place."""
        self.write()
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain


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
        return original.flatten().index_copy(0, self.index, self.values).view_as(original)


def pack(root: nn.Module, name: str, index: Tensor, *, decay: bool = True) -> nn.Parameter:
    """Let only the entries at `index` (flat, ascending) of the tensor `name` train; return their packed values.

    Weight decay acts on them where it acts on the whole tensor, and nowhere without `decay`.
    """
    site, _, leaf = name.rpartition(".")
    module = root.get_submodule(site)
    if isinstance(module, nn.Linear) and leaf == "weight":
        sparse = SparseLinear(module, index, decays=decay)
        root.set_submodule(site, sparse)
        return sparse.values
    tensor = module.get_parameter(leaf)
    packed = Packed(tensor, index, decays=decay and decays(leaf, tensor))
    parametrize.register_parametrization(module, leaf, packed)
    return packed.values


def decays(leaf: str, tensor: Tensor) -> bool:
    """Return whether weight decay acts on a tensor: on matrices and kernels, not on vectors and embeddings."""
    return tensor.dim() >= 2 and leaf not in {"cls_token", "pos_embed", "reg_token"}  # noqa: PLR2004


def unpack(root: nn.Module) -> None:
    """Make every packed tensor plain again, with its trained values in place."""
    for module in list(root.modules()):
        for leaf in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
    for name, module in list(root.named_modules()):
        if isinstance(module, SparseLinear):
            root.set_submodule(name, module.merged())
