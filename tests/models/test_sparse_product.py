"""The gradient of chosen entries: every way against the dense product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as some
from torch import Tensor
from torch.nn import functional as F

from peftbench.models.sparse_product import (
    WAYS,
    Pattern,
    SparseConvolution,
    SparseProduct,
    Way,
    patches,
    sampled_flops,
    turned,
)

PLACES = torch.tensor([3, 4, 23, 61, 63, 118])  # of a (12, 10) matrix: in four rows and four columns
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_its_gradients_are_right(way: Way, has_bias: bool) -> None:  # noqa: FBT001
    weight, pattern = random(12, 10), Pattern(PLACES, (12, 10), way)
    x, bias = random(2, 3, 10, seed=1).requires_grad_(), random(12, seed=2).requires_grad_()
    chosen = weight.flatten()[pattern.index].requires_grad_()

    def product(x: Tensor, chosen: Tensor, bias: Tensor) -> Tensor:
        written = weight.flatten().index_copy(0, pattern.index, chosen.detach()).view(12, 10)
        out: Tensor = SparseProduct.apply(x, written, bias if has_bias else None, chosen, pattern)
        return out

    assert torch.autograd.gradcheck(product, (x, chosen, bias if has_bias else bias.detach()))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_a_kernel_are_right(way: Way) -> None:
    kernel, pattern = random(4, 3, 2, 5), Pattern(torch.tensor([0, 7, 31, 90]), (4, 30), way)
    x, bias = (
        random(2, 3, 7, 10, seed=1).requires_grad_(),
        random(4, seed=2).requires_grad_(),
    )  # one line of pixels over
    chosen = kernel.flatten()[pattern.index].requires_grad_()

    def convolve(x: Tensor, chosen: Tensor, bias: Tensor) -> Tensor:
        written = kernel.flatten().index_copy(0, pattern.index, chosen.detach()).view_as(kernel)
        out: Tensor = SparseConvolution.apply(x, written, bias, chosen, pattern)
        return out

    torch.testing.assert_close(convolve(x, chosen, bias), F.conv2d(x, kernel, bias, stride=(2, 5)), rtol=0, atol=0)
    assert torch.autograd.gradcheck(convolve, (x, chosen, bias))


@some.composite
def cases(draw: some.DrawFn) -> tuple[tuple[int, int, int], Tensor]:
    """(batch, out, in) and at least one chosen place of an (out, in) matrix."""
    batch, out, in_ = draw(some.integers(1, 70)), draw(some.integers(1, 40)), draw(some.integers(1, 40))
    chosen = draw(some.sets(some.integers(0, out * in_ - 1), min_size=1, max_size=60))
    return (batch, out, in_), torch.tensor(sorted(chosen))


@given(case=cases(), dtype=some.sampled_from(list(CLOSE)))
def test_all_ways_agree(case: tuple[tuple[int, int, int], Tensor], dtype: torch.dtype) -> None:
    (batch, out, in_), index = case
    grad, seen = random(batch, out, dtype=dtype), random(batch, in_, dtype=dtype, seed=1)
    exact = (grad.double().T @ seen.double()).flatten()[index]
    for way in WAYS:
        pattern = Pattern(index, (out, in_), way)
        found = pattern.gradient(grad, pattern.keep(seen))
        assert found.dtype == dtype
        near = CLOSE[dtype] * (grad.double().abs().T @ seen.double().abs()).max().item()
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=near, msg=way)


@pytest.mark.parametrize("dtype", list(CLOSE))
def test_a_dot_product_has_the_same_bits_in_every_pattern(dtype: torch.dtype) -> None:
    grad, seen = random(130, 24, dtype=dtype), random(130, 18, dtype=dtype, seed=1)
    whole, few = torch.arange(24 * 18), torch.tensor([5, 90, 93, 400])
    found = [p.gradient(grad, p.keep(seen)) for p in (Pattern(i, (24, 18), "sampled") for i in (whole, few))]
    assert torch.equal(found[0][few], found[1])


@pytest.mark.parametrize(("way", "rows", "columns"), [("dense", 12, 10), ("columns", 12, 4), ("sampled", 4, 4)])
def test_backward_keeps_the_columns_it_needs(way: Way, rows: int, columns: int) -> None:
    pattern = Pattern(PLACES, (12, 10), way)
    assert pattern.size(way) == (rows, columns)
    assert pattern.keep(random(7, 10)).numel() == 7 * columns


def test_nothing_is_printed_of_sparse_tensors(recwarn: pytest.WarningsRecorder) -> None:
    pattern = Pattern(PLACES, (12, 10), "sampled")
    pattern.gradient(torch.ones(3, 12), pattern.keep(torch.ones(3, 10)))
    assert not list(recwarn)


@example(rows=2, columns=2, dtype=torch.bfloat16)
@given(rows=some.integers(1, 70), columns=some.integers(1, 70), dtype=some.sampled_from(list(CLOSE)))
def test_a_matrix_is_turned_bit_for_bit(rows: int, columns: int, dtype: torch.dtype) -> None:
    matrix = random(rows, columns, dtype=dtype)
    matrix[0, 0], matrix[-1, -1] = torch.nan, -torch.inf
    for each in (matrix, matrix.repeat(1, 2)[:, :columns]):
        found = turned(each)
        assert found.is_contiguous()
        torch.testing.assert_close(found, each.T, rtol=0, atol=0, equal_nan=True)


def test_patches_are_what_a_convolution_multiplies() -> None:
    images, kernel = random(2, 3, 6, 4), random(5, 3, 3, 2)
    product = patches(images, kernel.shape) @ kernel.flatten(1).T
    torch.testing.assert_close(
        product.view(2, 4, 5).transpose(1, 2).reshape(2, 5, 2, 2), F.conv2d(images, kernel, stride=(3, 2))
    )


def test_a_dot_product_is_two_operations_for_each_of_the_batch() -> None:
    assert sampled_flops((5, 64), (4, 64), (6,), (9,)) == 2 * 64 * 9
