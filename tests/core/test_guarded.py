"""Members of foreign plug-ins: what they raise or wrongly return is an error that names the plug-in."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest

from peftbench.core.contract import Preprocessing
from peftbench.core.fields import build
from peftbench.core.guarded import guarded
from peftbench.errors import PluginError, RequestError
from peftbench.models.method import Method, NoProbe
from peftbench.models.plan import Plan

WHO = "The method 'odd' (odd:plugin)"


@dataclass(frozen=True)
class Odd(Method):
    """A method whose members fail in many ways."""

    r: int = 4

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError("must be above 0")
        if self.r == 13:
            sys.exit(0)

    @property
    def has_learning_rate(self) -> bool:
        raise KeyError("x")

    @cached_property
    def table(self) -> Mapping[str, int]:
        raise ZeroDivisionError

    @staticmethod
    def helper() -> int:
        return sys.exit(0)

    def plan(self, vit: Any, probe: Any) -> Plan:
        del vit, probe
        return Plan() if self.r == 4 else None  # type: ignore[return-value]

    def count(self, vit: Any) -> int:
        del vit
        raise MemoryError

    def alternatives(self) -> Any:
        raise GeneratorExit

    def fits(self, *_: Any, **__: Any) -> Iterator[Any]:
        yield 1
        sys.exit(0)


KIND = guarded(Odd, WHO, "methods")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: KIND().has_learning_rate, "failed: KeyError: 'x'"),
        (lambda: KIND().table, "failed: ZeroDivisionError: "),
        (KIND.helper, "failed: SystemExit: 0"),
        (lambda: KIND().alternatives(), "failed: GeneratorExit: "),
        (lambda: KIND(r=5).plan(None, NoProbe()), "failed: plan returned NoneType instead of Plan."),
        (lambda: list(KIND().fits()), "failed: SystemExit: 0"),
        (lambda: KIND(r=13), "failed: SystemExit: 0"),
        (lambda: build(KIND, {"r": 13}, "odd"), "failed: SystemExit: 0"),
    ],
)
def test_a_fault_of_any_member_names_the_plugin(call: Any, says: str) -> None:
    with pytest.raises(PluginError) as raised:
        call()
    assert str(raised.value) == f"{WHO} {says}"


def test_a_sound_member_is_as_before() -> None:
    made = KIND()
    assert made.plan(None, NoProbe()).empty
    assert (made, replace(made, r=2).r, KIND.__name__) == (KIND(r=4), 2, "Odd")
    assert isinstance(made, Odd)
    assert next(made.fits()) == 1


def test_a_value_that_the_plugin_refuses_is_the_users_error() -> None:
    with pytest.raises(RequestError, match=r"odd: .*must be above 0"):
        build(KIND, {"r": 0}, "odd")


def test_memory_that_runs_out_is_not_the_plugins_fault() -> None:
    with pytest.raises(MemoryError):
        KIND().count(None)


def test_instances_and_functions_are_guarded_too() -> None:
    class Backbone:
        __slots__ = ()

        def preprocessing(self, image_size: int | None) -> Preprocessing:
            raise TypeError(f"no {image_size}\nsecond line")

    with pytest.raises(PluginError, match=r"^B failed: TypeError: no 224$"):
        guarded(Backbone(), "B", "backbones").preprocessing(224)

    def metric(*_: Any) -> float:
        raise KeyError("x")

    metric.tasks = ("single",)  # type: ignore[attr-defined]
    made = guarded(metric, "M", "metrics")
    assert made.tasks == ("single",)
    with pytest.raises(PluginError, match=r"^M failed: KeyError"):
        made(1, 2)
