"""Values that a user writes: converted to the types of the fields, wrong ones refused in one sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field

from peftbench.core.contract import Preprocessing
from peftbench.core.fields import AtLeast1, Fraction, Positive, build, checked
from peftbench.core.syntax import parse
from peftbench.errors import PluginError, RequestError


def _even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


@dataclass(frozen=True)
class Base:
    """What a checked class may inherit from."""

    def double(self) -> int:
        return 2 * int(vars(self)["r"])


@checked
class Method(Base):
    r: AtLeast1 = 8
    alpha: AtLeast1 | Literal["r"] = 8
    sites: Annotated[tuple[str, ...], Field(min_length=1)] = ("qkv",)
    dropout: Fraction = 0.0
    lr: Positive = 0.1
    norms: bool = False
    heads: AtLeast1 | None = None
    init: Literal["zero", "normal"] = "zero"
    groups: Annotated[int, AfterValidator(_even)] = 2

    def __post_init__(self) -> None:
        if self.r == 13:
            raise ValueError("r and 13 do not go together")


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("lora[r=4,alpha=r]", Method(r=4, alpha="r")),
        ("lora[alpha=16]", Method(alpha=16)),
        ("lora[sites=qkv+proj]", Method(sites=("qkv", "proj"))),
        ("lora[sites=proj]", Method(sites=("proj",))),
        ("lora[dropout=0.1,norms=true,heads=2]", Method(dropout=0.1, norms=True, heads=2)),
    ],
)
def test_written_values_become_the_types_of_the_fields(text: str, method: Method) -> None:
    assert build(Method, parse(text).fields, "lora") == method


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"r": 0}, "r must be at least 1, got 0."),
    ({"r": 2**31}, "r must be at most 2147483647, got 2147483648."),
    ({"r": 4.5}, "r must be a whole number, got 4.5."),
    ({"r": "four"}, "r must be a whole number, got four."),
    ({"r": ""}, "r must be a whole number, got nothing."),
    ({"alpha": 0}, "alpha must be at least 1 or 'r', got 0."),
    ({"alpha": "x"}, "alpha must be a whole number or 'r', got x."),
    ({"sites": ()}, "sites must not be empty, got nothing."),
    ({"dropout": 1.0}, "dropout must be below 1, got 1."),
    ({"dropout": -0.5}, "dropout must be at least 0, got -0.5."),
    ({"lr": 0.0}, "lr must be above 0, got 0."),
    ({"lr": float("inf")}, "lr must be a finite number, got inf."),
    ({"norms": "maybe"}, "norms must be true or false, got maybe."),
    ({"heads": 0}, "heads must be at least 1, got 0."),
    ({"init": "one"}, "init must be 'zero' or 'normal', got one."),
    ({"groups": 3}, "groups must be even, got 3."),
    ({"r": 13}, "r and 13 do not go together."),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=str)
def test_a_wrong_value_is_refused_in_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as written:
        build(Method, values, "lora")
    assert str(written.value) == f"lora: {message}"
    with pytest.raises(RequestError) as called:
        Method(**values)
    assert str(called.value) == f"test_fields: {message}"


@pytest.mark.parametrize("values", [{"r": True}, {"lr": True}, {"dropout": False}], ids=str)
def test_true_is_no_number(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"must be a (whole )?number, got (true|false)\."):
        build(Method, values, "lora")
    with pytest.raises(RequestError, match=r"must be a (whole )?number, got (True|False)\."):
        Method(**values)


def test_a_value_by_position_is_named_by_its_field() -> None:
    with pytest.raises(RequestError, match=r"^test_fields: alpha must be at least 1 or 'r', got 0\.$"):
        Method(4, 0)


def test_a_copy_is_checked_too() -> None:
    with pytest.raises(RequestError, match=r"^test_fields: r must be at least 1, got -1\.$"):
        replace(Method(), r=-1)
    assert replace(Method(), r=3).double() == 6


def test_a_name_may_be_written_as_a_flag() -> None:
    with pytest.raises(RequestError, match=r"^--dropout must be below 1, got 2\.$"):
        build(Method, {"dropout": "2"}, "", lambda name: f"--{name}")


def test_fields_that_are_unknown_or_missing_are_named() -> None:
    with pytest.raises(RequestError, match=r"^lora has no field 'rank'; its fields are r, alpha, sites, "):
        build(Method, {"rank": "4"}, "lora")
    with pytest.raises(RequestError, match=r"^who needs a value for 'size'\.$"):
        build(Preprocessing, {"mean": (0, 0, 0), "std": (1, 1, 1)}, "who")


@dataclass(frozen=True)
class Plain:
    """A plug-in of somebody else: a dataclass of the standard library, with a check of its own."""

    r: int = 8

    def __post_init__(self) -> None:
        if self.r < 1:
            raise RequestError(f"plain: r must be at least 1, got {self.r}.")


def test_a_plain_dataclass_is_built_and_checks_itself() -> None:
    assert build(Plain, {"r": "4"}, "plain") == Plain(4)
    for value in ("0", 0):
        with pytest.raises(RequestError, match=r"^plain: r must be at least 1, got 0\.$"):
            build(Plain, {"r": value}, "plain")
    with pytest.raises(RequestError, match=r"^plain: r must be a whole number, got four\.$"):
        build(Plain, {"r": "four"}, "plain")


def test_a_class_without_fields_is_the_fault_of_the_plug_in() -> None:
    with pytest.raises(PluginError, match=r"^odd: a plug-in must be a dataclass, and int is not one\.$"):
        build(int, {}, "odd")
