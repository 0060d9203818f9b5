"""The choice of the way to the gradient of chosen entries: expected, timed, remembered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftbench.models import sparse_ways
from peftbench.models.sparse import SparseLinear
from peftbench.models.sparse_product import WAYS, Pattern, Way
from peftbench.models.sparse_ways import choose, expected, expected_costs, fastest, patterns, settle, time_ways


def spread(size: int, share: float) -> Tensor:
    """Places drawn at random, ascending."""
    draw = torch.Generator().manual_seed(0)
    return torch.randperm(size, generator=draw)[: max(1, round(share * size))].sort().values


SHAPE = (768, 192)


def picks(rows: Any, columns: Any) -> Tensor:
    places: Tensor = (torch.as_tensor(rows) * SHAPE[1] + torch.as_tensor(columns)).flatten().unique()
    return places


@pytest.mark.parametrize(
    ("index", "way"),
    [
        (picks(torch.arange(30)[:, None], torch.arange(9)), "block"),
        (picks(torch.arange(768)[:, None], torch.arange(9)), "columns"),
        (picks(torch.arange(20)[:, None], torch.arange(192)), "rows"),
        (spread(768 * 192, 0.3), "dense"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_expected_way_follows_the_pattern(index: Tensor, way: Way, dtype: torch.dtype, device: str) -> None:
    assert expected(Pattern(index, SHAPE), dtype, device) == way


def test_scattered_entries_are_sampled_where_there_is_a_kernel_for_it() -> None:
    pattern = Pattern(spread(768 * 192, 0.01), SHAPE)
    assert [expected(pattern, torch.float32, device) for device in ("cpu", "cuda")] == ["sampled", "dense"]


# --- timed -----------------------------------------------------------------------------------------------------------


BLOCK = picks(torch.arange(30)[:, None], torch.arange(9))  # for which `block` is expected


def network() -> nn.Sequential:
    """Two sparse layers and a plain one."""
    sparse = (SparseLinear(nn.Linear(192, 768), index) for index in (BLOCK, spread(768 * 192, 0.3)))
    return nn.Sequential(next(sparse), nn.Linear(768, 192), next(sparse))


def timed(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[Sequence[Way]]:
    """Let ways take these seconds; returns a list that fills with what is timed."""
    calls: list[Sequence[Way]] = []

    def times(_: Pattern, ways: Sequence[Way], *_rest: object) -> dict[Way, float]:
        calls.append(ways)
        return {way: seconds.get(way, 1.0) for way in ways}

    monkeypatch.setattr(sparse_ways, "time_ways", times)
    return calls


def ways_of(root: nn.Module) -> list[Way]:
    return [pattern.way for pattern in patterns(root).values()]


@pytest.mark.parametrize(
    ("seconds", "way"),
    [
        ({"sampled": 0.9}, "block"),  # noise
        ({"sampled": 0.51}, "block"),  # noise on a busy machine
        ({"sampled": 0.49}, "sampled"),
        ({"sampled": 0.3, "columns": 0.2}, "columns"),
        ({"block": 2e-4, "sampled": 1e-5}, "block"),  # much faster, but nothing is saved
    ],
)
def test_another_way_must_be_much_faster(seconds: dict[str, float], way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_ways, "PLAUSIBLE", 1000)
    timed(monkeypatch, **seconds)
    assert fastest(Pattern(BLOCK, SHAPE), 2048, torch.float32) == way


def test_ways_that_cannot_win_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = Pattern(BLOCK, SHAPE)
    costs = expected_costs(pattern, torch.float32)
    calls = timed(monkeypatch)
    fastest(pattern, 2048, torch.float32)
    assert all(costs[way] <= sparse_ways.PLAUSIBLE * costs["block"] for way in calls[0])
    assert "dense" not in calls[0]


def test_every_way_can_be_timed() -> None:
    seconds = time_ways(Pattern(BLOCK, SHAPE), WAYS, "block", 16, torch.bfloat16)
    assert list(seconds) == list(WAYS)
    assert all(0 <= time < 10 for time in seconds.values())


def test_timing_draws_nothing_at_random(tmp_path: Path) -> None:
    root, before = network(), torch.get_rng_state()
    choose(root, 16, torch.float32, tmp_path, {})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_choice_is_remembered_for_the_machine_the_shapes_and_the_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed(monkeypatch, block=1.0, columns=0.1)

    def chosen(samples: int = 2048, dtype: torch.dtype = torch.float32, threads: int = 1) -> tuple[list[Way], int]:
        before = len(calls)
        ways = choose(network(), samples, dtype, tmp_path, {"threads": threads})
        return list(ways.values()), len(calls) - before

    assert chosen() == (["block", "columns"], 3)  # a layer whose way is replaced is timed twice
    assert chosen() == (["block", "columns"], 0)
    assert all(found for _, found in (chosen(samples=64), chosen(dtype=torch.bfloat16), chosen(threads=2)))


def test_a_way_that_wins_once_by_noise_replaces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = iter([{"block": 1.0, "columns": 0.1}, {"block": 0.11, "columns": 0.1}])
    monkeypatch.setattr(sparse_ways, "time_ways", lambda *_: next(noisy))
    assert fastest(Pattern(BLOCK, SHAPE), 2048, torch.float32) == "block"


def test_a_damaged_choice_is_made_again(tmp_path: Path) -> None:
    before = choose(network(), 16, torch.float32, tmp_path, {})
    (file,) = tmp_path.rglob("ways.json")
    file.write_text(file.read_text().replace("block", "rows"))
    assert choose(network(), 16, torch.float32, tmp_path, {}) == before
    assert "rows" not in file.read_text()


def test_layers_are_settled_by_name_and_unknown_ways_change_nothing() -> None:
    root = network()
    before = ways_of(root)
    settle(root, {"0": "of a later version", "9": "rows"})
    assert ways_of(root) == before
    settle(root, {"0": "rows", "2": "sampled"})
    assert ways_of(root) == ["rows", "sampled"]


def gradients(root: nn.Sequential, ways: Iterable[Way]) -> list[Tensor]:
    settle(root, dict(zip(("0", "2"), ways, strict=True)))
    root.zero_grad()
    torch.manual_seed(0)
    root(torch.randn(40, 192)).square().mean().backward()
    return [p.grad.clone() for p in root.parameters() if p.grad is not None]


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_trains_alike_in_every_way_and_twice_with_the_same_bits(way: Way) -> None:
    torch.manual_seed(0)
    root: Any = network().requires_grad_(requires_grad=False)
    for layer in (root[0], root[2]):
        layer.values.requires_grad_()
    several: list[list[Way]] = [["dense"] * 2, [way] * 2, [way] * 2]
    usual, other, again = (gradients(root, ways) for ways in several)
    for one, two, three in zip(usual, other, again, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6 * one.abs().max().item())
        assert torch.equal(two, three)
