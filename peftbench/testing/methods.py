"""check_method: every rule of the contract of methods, on three networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from peftbench.models.method import Method
from peftbench.testing import method_delta, method_plan, method_training
from peftbench.testing.findings import Finding, Rule, judge
from peftbench.testing.fixture import Scene
from peftbench.testing.networks import STYLES

RULES: tuple[Rule[Scene], ...] = (
    method_plan.it_runs,
    method_plan.planning_changes_nothing,
    method_plan.planning_twice_agrees,
    method_plan.counting_needs_no_data,
    method_plan.the_count_is_what_trains,
    method_training.it_starts_as_the_pretrained_network,
    method_training.frozen_tensors_stay,
    method_training.every_value_learns,
    method_training.evaluation_draws_nothing,
    method_training.images_stay_apart,
    method_training.it_works_under_bf16,
    method_delta.a_delta_brings_it_back,
    method_delta.merged_computes_the_same,
    method_delta.nothing_is_left_behind,
)
ONCE: tuple[Rule[Scene], ...] = (  # on the plain network: another one would tell nothing new
    method_training.the_same_seed_gives_the_same_bits,
    method_training.a_resumed_run_ends_with_the_same_bits,
    method_plan.its_fields_come_back,
    method_plan.the_budget_is_met,
)
COMPILED: tuple[Rule[Scene], ...] = (method_training.it_compiles,)  # likewise; 0.7 s


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
