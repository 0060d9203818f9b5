"""check_method: every rule of the contract of methods, on three networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from peftbench.method import Method
from peftbench.testing import deciding, keeping, training
from peftbench.testing.findings import Finding, Rule, judge
from peftbench.testing.networks import STYLES
from peftbench.testing.scene import Scene

RULES: tuple[Rule[Scene], ...] = (
    deciding.it_runs,
    deciding.planning_changes_nothing,
    deciding.planning_twice_agrees,
    deciding.counting_needs_no_data,
    deciding.the_count_is_what_trains,
    training.it_starts_as_the_pretrained_network,
    training.frozen_tensors_stay,
    training.every_value_learns,
    training.evaluation_draws_nothing,
    training.images_stay_apart,
    training.it_works_under_bf16,
    keeping.a_delta_brings_it_back,
    keeping.merged_computes_the_same,
    keeping.nothing_is_left_behind,
)
ONCE: tuple[Rule[Scene], ...] = (  # on the plain network: another one would tell nothing new
    training.the_same_seed_gives_the_same_bits,
    training.a_resumed_run_ends_with_the_same_bits,
    deciding.its_fields_come_back,
    deciding.the_budget_is_met,
)
COMPILED: tuple[Rule[Scene], ...] = (training.it_compiles,)  # likewise; 0.7 s


def check_method(
    method: type[Method] | Method, networks: Sequence[str] = tuple(STYLES), *, compiled: bool = False
) -> list[Finding]:
    """Every rule's finding on three tiny networks, in about a second; with `compiled`, torch.compile's as well.

    A class is checked with its defaults.
    """
    made = method() if isinstance(method, type) else method
    with torch.random.fork_rng(devices=[]):
        return [f for style in networks for f in _findings(made, style, compiled=compiled)]


def _findings(method: Method, style: str, *, compiled: bool) -> Iterator[Finding]:
    extra = (*ONCE, *(COMPILED if compiled else ())) if style == "plain" else ()
    yield from judge((*RULES, *extra), Scene(method, style), style)
