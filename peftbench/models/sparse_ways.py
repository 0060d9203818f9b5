"""Which way to the gradient of single entries is the cheapest, by what it is expected to cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from peftbench.models.sparse_product import WAYS, Pattern, Way


@dataclass(frozen=True)
class Costs:
    """What things cost for each image token, as many times an entry of the dense product."""

    read: float  # a row or column that goes into a product
    take: float  # one copied out of the gradient or the input
    turn: float  # one transposed
    dot: float  # an entry by itself


COSTS = {torch.bfloat16: Costs(20, 75, 70, 20), torch.float32: Costs(18, 40, 25, 10)}


def expected_costs(pattern: Pattern, dtype: torch.dtype, device: str = "cpu") -> dict[Way, float]:
    """What each way costs, in entries of the dense product."""
    cost = COSTS.get(dtype, COSTS[torch.float32])
    found = dict[Way, float]()
    for way in WAYS:
        (rows, columns), (height, width) = pattern.takes(way), pattern.size(way)
        copied = cost.take * (height * rows + width * columns)
        if way == "sampled":
            found[way] = copied + cost.turn * (height + width) + cost.dot * len(pattern.index)
        else:
            found[way] = copied + cost.read * (height + width) + height * width
    if device != "cpu":
        del found["sampled"]
    return found


def expected(pattern: Pattern, dtype: torch.dtype, device: str = "cpu") -> Way:
    """The cheapest way."""
    costs = expected_costs(pattern, dtype, device)
    return min(costs, key=costs.__getitem__)
