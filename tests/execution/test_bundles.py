"""Bundles of jobs: as long as the target by the forecast, never more than an array may have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peftbench.execution.bundles import bundled


def test_short_items_share_a_bundle_up_to_the_target() -> None:
    assert bundled("abcde", [4, 4, 4, 20, 4], target=10) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_an_item_of_unknown_time_is_a_bundle_of_its_own() -> None:
    assert bundled("abc", [None, None, 1], target=10) == [["a"], ["b"], ["c"]]


def test_bundles_are_shorter_where_more_could_run_at_the_same_time() -> None:
    assert bundled("abcd", [1, 1, 1, 1], target=100) == [list("abcd")]
    assert bundled("abcd", [1, 1, 1, 1], target=100, parallel=2) == [["a", "b"], ["c", "d"]]


def test_the_longest_items_are_spread_where_an_array_has_too_few_tasks() -> None:
    assert bundled("abcd", [9, 8, 1, 2], target=1, most=2) == [["a", "c"], ["b", "d"]]


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1e4)), max_size=60),
    st.floats(1, 1e4),
    st.integers(0, 8),
    st.integers(0, 9),
)
def test_every_item_has_one_owner(seconds: list[float | None], target: float, parallel: int, most: int) -> None:
    made = bundled(range(len(seconds)), seconds, target, parallel, most)
    assert sorted(item for one in made for item in one) == list(range(len(seconds)))
    assert all(made)
    assert not most or len(made) <= most
