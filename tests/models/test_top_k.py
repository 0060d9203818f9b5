"""The largest of many scores, found piece by piece: the same as sorting them all, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peftbench.errors import JobError
from peftbench.models import top_k

FEW_VALUES = st.sampled_from([0.0, 1.0, 1.0 + 2**-40, 2.0, -1.0, 1e300])  # so that there are ties
TENSORS = st.lists(st.lists(FEW_VALUES, min_size=1, max_size=12), min_size=1, max_size=8)


def scores(tensors: list[list[float]]) -> dict[str, Tensor]:
    return {str(number): torch.tensor(values, dtype=torch.float64) for number, values in enumerate(tensors)}


@settings(max_examples=80)
@given(TENSORS, st.data())
def test_dropping_the_lesser_ones_on_the_way_changes_nothing(tensors: list[list[float]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, sum(map(len, tensors))))
    everything = np.concatenate(tensors)
    expected = np.sort(np.argsort(-everything, kind="stable")[:k])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "ROOM", 1)  # as soon as more than 2 k are held
        index, values, sizes = top_k.largest_flat(scores(tensors).items(), k)
    assert index.tolist() == expected.tolist()
    assert values.tolist() == everything[expected].tolist()
    assert list(sizes.values()) == [len(tensor) for tensor in tensors]


@settings(max_examples=40)
@given(TENSORS, st.data())
def test_a_tensor_may_come_in_pieces(tensors: list[list[float]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, sum(map(len, tensors))))
    pieces = ((name, piece) for name, tensor in scores(tensors).items() for piece in tensor.split(5))
    in_pieces, whole = top_k.largest(pieces, k), top_k.largest(scores(tensors), k)
    assert {n: i.tolist() for n, i in in_pieces.items()} == {n: i.tolist() for n, i in whole.items()}


def test_indices_are_those_within_each_tensor() -> None:
    found = top_k.largest({"a": torch.tensor([[1.0, 5.0], [0.0, 4.0]]), "b": torch.tensor([3.0, 6.0])}, 3)
    assert {name: index.tolist() for name, index in found.items()} == {"a": [1, 3], "b": [1]}


@pytest.mark.parametrize("values", [[1.0, float("nan")], [1.0, float("inf")], [float("inf"), -float("inf")]])
def test_scores_that_are_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(JobError, match="not finite"):
        top_k.largest({"a": torch.tensor(values)}, 1)


def test_finite_scores_whose_sum_is_not_are_none_of_those() -> None:
    huge = torch.full((4,), 1e308, dtype=torch.float64)
    assert top_k.largest({"a": huge}, 2)["a"].tolist() == [0, 1]


def test_how_far_two_choices_agree() -> None:
    one = {"a": torch.tensor([0, 1]), "b": torch.tensor([3])}
    assert top_k.overlap(one, {"a": torch.tensor([1, 2])}) == pytest.approx(1 / 3)


@pytest.mark.parametrize("k", [1, 2, 3, 8_580, 857_987, 85_798_656])
def test_a_share_is_the_shortest_number_that_asks_for_a_count(k: int) -> None:
    share = top_k.shortest_share(k, 85_798_656)
    assert round(share * 85_798_656) == k


def test_one_percent_is_the_share_of_a_hundredth_of_all_weights() -> None:
    assert top_k.shortest_share(857_987, 85_798_656) == 0.01


@settings(max_examples=60)
@given(TENSORS, st.data())
def test_cutoffs_select_a_tensor_at_a_time_what_sorting_all_selects(
    tensors: list[list[float]], data: st.DataObject
) -> None:
    single = {name: tensor.clamp(-2, 2).float() for name, tensor in scores(tensors).items()}
    size = sum(map(len, tensors))
    ks = data.draw(st.lists(st.integers(1, size), min_size=1, max_size=4))
    for k, cutoff in zip(ks, top_k.cutoffs(torch.cat(list(single.values())), ks), strict=True):
        found = {name: index.tolist() for name, index in top_k.select(single.items(), cutoff) if len(index)}
        assert found == {name: index.tolist() for name, index in top_k.largest(single, k).items()}


def test_cutoffs_of_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(JobError, match="not finite"):
        top_k.cutoffs(torch.tensor([1.0, float("nan")]), [1])
