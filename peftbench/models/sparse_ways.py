"""Choosing the way to the gradient of single entries: by its expected cost, and by its time on this machine.

The ways agree up to rounding, so another way gives other bits. The choice must therefore not depend on timing
noise: a way replaces the one expected to be the cheapest only where it is much faster, the choice is remembered for the
next job of the same pattern, and checkpoints and records hold it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from peftbench.models.sparse_product import HAS_SAMPLED, WAYS, Pattern, Way
from peftbench.storage import checked_json, files
from peftbench.storage.cache import building

SAMPLES = 2048  # rows of the batch that are enough to time a product
ROUNDS = 3
PLAUSIBLE = 4  # a way expected to cost more than so many times the cheapest is not timed
SLOW = 2  # a way that takes so many times as long as the fastest is timed no further
FASTER = 0.5  # of the expected way's time: what a way may take at most to replace it
WORTH = 3e-4  # seconds in a step that it must save


@dataclass(frozen=True)
class RowCosts:
    """Costs per row of the batch, in multiples of what one entry of the dense product costs."""

    read: float  # a row or column that goes into a product
    take: float  # one copied out of the gradient or the input
    turn: float  # one transposed
    dot: float  # an entry that is computed by itself


# Fitted to times on a Zen 4 core with avx512_bf16 at widths 192 and 384, with operands that are in no cache: the way
# that is expected takes at most 1.25 times as long as the fastest one.
COSTS: Mapping[torch.dtype, RowCosts] = {
    torch.bfloat16: RowCosts(20, 75, 50, 20),
    torch.float32: RowCosts(18, 40, 25, 10),
}


def expected_costs(pattern: Pattern, dtype: torch.dtype, device: str = "cpu") -> dict[Way, float]:
    """Return the cost of each way that `device` has a kernel for, per row of the batch, in entries of the product."""
    cost = COSTS.get(dtype, COSTS[torch.float32])
    costs = dict[Way, float]()
    for way in WAYS:
        (rows, columns), (height, width) = pattern.takes(way), pattern.size(way)
        copied = cost.take * (height * rows + width * columns)
        if way == "sampled":
            costs[way] = copied + cost.turn * (height + width) + cost.dot * len(pattern.index)
        else:
            costs[way] = copied + cost.read * (height + width) + height * width
    if device != "cpu" or not HAS_SAMPLED:
        del costs["sampled"]
    return costs


def expected(pattern: Pattern, dtype: torch.dtype, device: str = "cpu") -> Way:
    """Return the way of the least expected cost."""
    costs = expected_costs(pattern, dtype, device)
    return min(costs, key=costs.__getitem__)


# --- timing ----------------------------------------------------------------------------------------------------------


def patterns(root: nn.Module) -> dict[str, Pattern]:
    """Return the patterns in a network by the names of their layers."""
    return {n.removesuffix(".pattern"): p for n, p in root.named_modules() if isinstance(p, Pattern)}


def settle(root: nn.Module, ways: Mapping[str, str]) -> None:
    """Let each layer named in `ways` compute in that way; the others, and unknown ways, stay as they are."""
    for name, pattern in patterns(root).items():
        for way in WAYS:
            if ways.get(name) == way:
                pattern.settle(way)


def choose(
    root: nn.Module, samples: int, dtype: torch.dtype, cache: Path, machine: Mapping[str, object]
) -> dict[str, Way]:
    """Return the way for each sparse layer, from the folder `cache` or else timed once on this machine.

    `samples` is the number of rows of a layer's input in a step, `dtype` the one of its product, and `machine` holds
    whatever else decides a time. Raises DataError if the cache cannot be locked.
    """
    found = patterns(root)
    facts = {name: [*pattern.shape, *pattern.filled, len(pattern.index)] for name, pattern in found.items()}
    key = files.sha256_json([facts, samples, str(dtype), dict(machine)])[:24]
    file = cache / "measured" / key / "ways.json"
    with building(file):  # jobs side by side wait for the first one and take its choice
        with suppress(OSError, ValueError):
            return dict(checked_json.read(file, key))
        ways: dict[str, Way] = {name: fastest(pattern, samples, dtype) for name, pattern in found.items()}
        with suppress(OSError):
            checked_json.write(file, ways, key)
    return ways


def fastest(pattern: Pattern, samples: int, dtype: torch.dtype) -> Way:
    """Return the expected way, or one that is so much faster that no noise explains it."""
    device = pattern.index.device
    costs = expected_costs(pattern, dtype, device.type)
    usual = min(costs, key=costs.__getitem__)
    plausible: list[Way] = [way for way, cost in costs.items() if cost <= PLAUSIBLE * costs[usual]]
    if len(plausible) == 1:
        return usual
    best = _replacement(pattern, plausible, usual, samples, dtype)
    # timed twice: another process that disturbs one timing hardly disturbs both in the same way
    return usual if best == usual else _replacement(pattern, [usual, best], usual, samples, dtype)


def _replacement(pattern: Pattern, ways: Sequence[Way], usual: Way, samples: int, dtype: torch.dtype) -> Way:
    """Return the fastest of some ways if it saves enough, else the usual one."""
    seconds = time_ways(pattern, ways, usual, min(samples, SAMPLES), dtype)
    best = min(seconds, key=seconds.__getitem__)
    saved = (seconds[usual] - seconds[best]) * max(1, samples / SAMPLES)
    return best if seconds[best] < FASTER * seconds[usual] and saved > WORTH else usual


def time_ways(pattern: Pattern, ways: Sequence[Way], usual: Way, samples: int, dtype: torch.dtype) -> dict[Way, float]:
    """Return the least seconds of each way over several rounds, in which the ways that are not slow take turns."""
    device = pattern.index.device
    grad, seen = (torch.ones(samples, n, device=device, dtype=dtype) for n in pattern.shape)
    laid_out: dict[Way, Pattern] = {way: Pattern(pattern.index, pattern.shape, way) for way in ways}
    clock = _clock(device)
    seconds: dict[Way, float] = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for way, one in laid_out.items():
            started = clock()
            one.gradient(grad, one.keep(seen))
            seconds[way] = min(seconds[way], clock() - started)
        slow = SLOW * min(seconds.values())
        laid_out = {way: one for way, one in laid_out.items() if way == usual or seconds[way] <= slow}
    return seconds


def _clock(device: torch.device) -> Callable[[], float]:
    """Return a clock: CPU seconds of one thread, which other processes disturb least, else seconds."""
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized
