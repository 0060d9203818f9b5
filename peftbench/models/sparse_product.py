"""A product with a matrix of which only some entries learn, and the ways to the gradient of those entries.

Of `x @ weight.T` over a batch, the gradient of a dense weight is `grad.T @ x`. Where k entries of it are wanted, in r
of its rows and c of its columns, there is less to compute: the product of these rows or columns only, or k dot
products. Which is cheapest depends on the pattern, the precision and the machine: see `sparse_ways`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

Way = Literal["dense", "rows", "columns", "block", "sampled"]
WAYS: tuple[Way, ...] = get_args(Way)
MOST = 0.7  # of the rows or columns: dot products of fewer transpose only those


class Pattern(nn.Module):
    """Where the chosen entries of a matrix lie, laid out for one way to compute their gradient.

    | way | gradient of the entries |
    |---|---|
    | dense | the whole product, of which the entries are taken |
    | rows, columns | the product of the rows, or of the columns, that hold an entry |
    | block | the product of these rows and columns |
    | sampled | a dot product over the batch for each entry |
    """

    index: Tensor  # (k,) of the entries in the flat matrix, ascending
    rows: Tensor | None  # (r,) that are taken from the gradient before the product; None: all
    columns: Tensor | None  # (c,) that are taken from the input
    place: Tensor  # (k,) of the entries in the flat product; the column of each where they are sampled
    starts: Tensor | None  # (r + 1,) of each row's first entry where they are sampled

    def __init__(self, index: Int64[Tensor, " chosen"], shape: tuple[int, int], way: Way = "dense") -> None:
        """`index`: flat, ascending."""
        super().__init__()
        self.shape = shape
        self.filled = len((index // shape[1]).unique()), len((index % shape[1]).unique())  # rows and columns
        self.register_buffer("index", index)
        for name in ("rows", "columns", "place", "starts"):
            self.register_buffer(name, None, persistent=False)
        self.settle(way)

    def settle(self, way: Way) -> None:
        """Compute in this way from now on."""
        self.way: Way = way
        take_rows, take_columns = self.takes(way)
        row, column = self.index // self.shape[1], self.index % self.shape[1]
        self.rows = self.columns = self.starts = None
        if take_rows:
            self.rows, row = torch.unique(row, return_inverse=True)
        if take_columns:
            self.columns, column = torch.unique(column, return_inverse=True)
        height, width = self.size(way)
        if way == "sampled":
            self.starts = torch.searchsorted(row, torch.arange(height + 1, device=row.device))
        self.upright = width > height
        places = row * width + column if self.upright else column * height + row
        self.place = column if way == "sampled" else places

    def takes(self, way: Way) -> tuple[bool, bool]:
        """Return whether a way copies the rows that hold an entry, and the columns, before it multiplies."""
        if way == "sampled":  # transposes what it copies, so that most of a matrix is faster transposed as a whole
            rows, columns = (some < MOST * all_ for some, all_ in zip(self.filled, self.shape, strict=True))
            return rows, columns
        return way in {"rows", "block"}, way in {"columns", "block"}

    def size(self, way: Way) -> tuple[int, int]:
        """Return how many rows and columns a way computes with."""
        height, width = (
            some if taken else whole
            for some, whole, taken in zip(self.filled, self.shape, self.takes(way), strict=True)
        )
        return height, width

    def keep(self, seen: Float[Tensor, "batch in"]) -> Tensor:
        """Return what backward needs of the input (B, in): (B, in) or (B, c), (in, B) or (c, B) for dot products."""
        kept = seen if self.columns is None else _columns(seen, self.columns)
        return turned(kept) if self.way == "sampled" else kept

    def gradient(self, grad: Float[Tensor, "batch out"], kept: Tensor) -> Float[Tensor, " chosen"]:
        """Return the gradient (k,) of the entries, in the precision of grad (B, out), from that and what was kept."""
        some = grad if self.rows is None else _columns(grad, self.rows)
        if self.way == "sampled":
            dots: Tensor = torch.ops.peftbench.sampled(turned(some), kept, self.starts, self.place)
            return dots
        # The narrower factor first: on a CPU a product (n, B) x (B, 7) can take four times as long as (7, B) x (B, n).
        product = some.T @ kept if self.upright else kept.T @ some
        return product.flatten().index_select(0, self.place)


def _columns(matrix: Float[Tensor, "batch n"], chosen: Int64[Tensor, " few"]) -> Float[Tensor, "batch few"]:
    """Return the chosen columns.

    On a CPU `gather` takes .4 of the time of `index_select` in bfloat16, and .7 of that on integers of the same size.
    """
    integers = matrix.view(torch.int16) if matrix.dtype == torch.bfloat16 else matrix
    return integers.gather(1, chosen.expand(len(matrix), -1)).view(matrix.dtype)


def turned(matrix: Float[Tensor, "batch n"]) -> Float[Tensor, "n batch"]:
    """Return the transposed matrix, contiguous; on a CPU by the fastest kernel that torch has for it."""
    rows, columns = matrix.shape
    if matrix.device.type == "cpu" and matrix.is_contiguous():
        if matrix.dtype == torch.float32:  # to shuffle channels is to transpose, and is vectorized: half of the time
            pixel = matrix.as_strided((1, rows * columns, 1, 1), (rows * columns, 1, rows * columns, rows * columns))
            return F.channel_shuffle(pixel, rows).view(columns, rows)
        if matrix.dtype == torch.bfloat16 and columns % 2 == 0:  # in pairs of the size of a float32: two thirds
            pairs = turned(matrix.view(torch.float32)).view(torch.bfloat16).view(columns // 2, rows, 2)
            return pairs.transpose(1, 2).reshape(columns, rows).contiguous()  # two rows: reshape gives a view
    return matrix.T.contiguous()


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
        x, weight, cast_bias = _cast(x, weight, bias)
        ctx.pattern, ctx.shape, ctx.dtypes = pattern, x.shape, (values.dtype, bias.dtype if bias is not None else None)
        ctx.save_for_backward(pattern.keep(x.reshape(-1, x.shape[-1])), weight)
        return F.linear(x, weight, cast_bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, bias and values."""
        kept, weight = ctx.saved_tensors
        grad, (values_type, bias_type) = grads[0].to(weight.dtype), ctx.dtypes
        flat = grad.reshape(-1, grad.shape[-1])
        of_x = (flat @ weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        of_bias = flat.sum(0).to(bias_type) if ctx.needs_input_grad[2] else None
        of_values = ctx.pattern.gradient(flat, kept).to(values_type) if ctx.needs_input_grad[3] else None
        return of_x, None, of_bias, of_values, None


class SparseConvolution(torch.autograd.Function):
    """The same for a convolution whose patches do not overlap: a product with each patch, as torch convolves."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context has no public type
        x: Float[Tensor, "batch channels height width"],
        weight: Float[Tensor, "out channels side_y side_x"],
        bias: Float[Tensor, " out"] | None,
        values: Float[Tensor, " chosen"],
        pattern: Pattern,
    ) -> Float[Tensor, "batch out rows columns"]:
        """Images (B, C, H, W), kernel (out, C, p, q), bias (out,), values (k,) -> (B, out, H / p, W / q)."""
        ctx.pattern, ctx.dtypes = pattern, (values.dtype, bias.dtype if bias is not None else None)
        ctx.save_for_backward(x, weight)  # images are there anyway; their patches are cut when they are needed
        x, weight, cast_bias = _cast(x, weight, bias)
        return F.conv2d(x, weight, cast_bias, stride=weight.shape[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of x, bias and values."""
        (x, weight), (values_type, bias_type), grad = ctx.saved_tensors, ctx.dtypes, grads[0]
        flat = grad.flatten(2).transpose(1, 2).reshape(-1, grad.shape[1])
        of_x = None
        if ctx.needs_input_grad[0]:
            kernel, stride = weight.to(grad.dtype), weight.shape[2:]
            of_x = conv2d_input(x.shape, kernel, grad, stride=stride).to(x.dtype)
        of_bias = flat.sum(0).to(bias_type) if ctx.needs_input_grad[2] else None
        of_values = None
        if ctx.needs_input_grad[3]:
            kept = ctx.pattern.keep(patches(x.to(grad.dtype), weight.shape))
            of_values = ctx.pattern.gradient(flat, kept).to(values_type)
        return of_x, None, of_bias, of_values, None


def patches(images: Float[Tensor, "batch channels height width"], kernel: Sequence[int]) -> Float[Tensor, "patches in"]:
    """Images (B, C, H, W) cut for a kernel (out, C, p, q): a row of C p q pixels for each of the B H/p W/q patches."""
    _, channels, p, q = kernel
    batch, height, width = images.shape[0], images.shape[2] // p, images.shape[3] // q
    whole = images[..., : height * p, : width * q]
    cut = whole.reshape(batch, channels, height, p, width, q).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(batch * height * width, channels * p * q)


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the three as autocast casts them, where it is on."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return x, weight, bias.to(x.dtype) if bias is not None else None


# --- dot products ----------------------------------------------------------------------------------------------------


def _sampled(grad: Tensor, seen: Tensor, starts: Tensor, column: Tensor) -> Tensor:
    """Return the dot products (k,) of rows of grad (r, B) and rows of seen (c, B), both contiguous.

    Row i of grad meets the rows column[starts[i]:starts[i + 1]] of seen. Sums are in float32 or wider, each dot product
    in the same order whatever the pattern and the number of threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls sparse CSR tensors a beta
        places = torch.sparse_csr_tensor(
            starts, column, grad.new_zeros(len(column)), (len(grad), len(seen)), check_invariants=False
        )
    # What torch.sparse.mm(places, seen, reduce="sum") calls for the gradient of the values of `places`.
    none = column.new_empty(0)
    product, _ = torch.ops.aten._sparse_mm_reduce_impl_backward(places, grad, seen, "sum", none, [True, False])  # noqa: SLF001
    values: Tensor = product.values()
    return values


def _sampled_elsewhere(grad: Tensor, seen: Tensor, starts: Tensor, column: Tensor) -> Tensor:
    """Return the same where torch has no such kernel: out of the dense product."""
    row = torch.repeat_interleave(starts.diff(), output_size=len(column))
    return (grad @ seen.T)[row, column]


# An operator of its own, so that passes without values and counters of operations know what it gives and costs.
_OPERATORS = torch.library.Library("peftbench", "DEF")
_OPERATORS.define("sampled(Tensor grad, Tensor seen, Tensor starts, Tensor column) -> Tensor")
# The kernel is private, though in every torch from 2.11 to 2.15; without it dot products cost a dense product.
HAS_SAMPLED = hasattr(torch.ops.aten, "_sparse_mm_reduce_impl_backward")
_OPERATORS.impl("sampled", _sampled if HAS_SAMPLED else _sampled_elsewhere, "CPU")
_OPERATORS.impl("sampled", _sampled_elsewhere, "CUDA")
torch.library.register_fake(
    "peftbench::sampled", lambda grad, _seen, _starts, column: grad.new_empty(len(column)), lib=_OPERATORS
)


def sampled_flops(grad: Sequence[int], _seen: object, _starts: object, column: Sequence[int], **_: object) -> int:
    """Return the operations of the operator, from the shapes of its inputs; a multiply-add is two."""
    return 2 * grad[1] * column[0]
