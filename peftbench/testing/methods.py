"""check_method: every rule for methods, on three tiny networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from peftbench.models.method import Method
from peftbench.testing import method_delta, method_plan, method_training
from peftbench.testing.findings import Finding, Rule, run_rules
from peftbench.testing.fixture import MethodFixture
from peftbench.testing.networks import STYLES

RULES: tuple[Rule[MethodFixture], ...] = (
    method_plan.it_runs,
    method_plan.planning_changes_nothing,
    method_plan.planning_twice_agrees,
    method_plan.counting_needs_no_data,
    method_plan.the_count_is_what_trains,
    method_training.it_starts_as_the_pretrained_network,
    method_training.frozen_tensors_stay,
    method_training.every_value_learns,
    method_training.evaluation_is_deterministic,
    method_training.images_are_independent,
    method_training.it_works_under_bf16,
    method_delta.a_delta_restores_it,
    method_delta.merged_computes_the_same,
    method_delta.the_network_is_restored,
)
ONCE: tuple[Rule[MethodFixture], ...] = (  # on the plain network only: they do not depend on the network
    method_training.the_same_seed_gives_the_same_bits,
    method_training.a_resumed_run_ends_with_the_same_bits,
    method_plan.its_fields_come_back,
    method_plan.the_budget_is_met,
)
COMPILED: tuple[Rule[MethodFixture], ...] = (method_training.it_compiles,)  # on the plain network only


def check_method(
    method: type[Method] | Method, networks: Sequence[str] = tuple(STYLES), *, compiled: bool = False
) -> list[Finding]:
    """Return every rule's finding on three tiny networks, in about a second; with `compiled`, torch.compile's, too.

    A class is built with its defaults.
    """
    made = method() if isinstance(method, type) else method
    with torch.random.fork_rng(devices=[]):
        return [f for style in networks for f in _findings(made, style, compiled=compiled)]


def _findings(method: Method, style: str, *, compiled: bool) -> Iterator[Finding]:
    extra = (*ONCE, *(COMPILED if compiled else ())) if style == "plain" else ()
    yield from run_rules((*RULES, *extra), MethodFixture(method, style), style)
