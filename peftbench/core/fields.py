"""The fields of methods, recipes and studies: checked by pydantic, their errors in one sentence.

@checked
class LoRA(Method):
    r: AtLeast1 = 8

LoRA(r=0)                           # RequestError: lora: r must be at least 1, got 0.
build(LoRA, {"r": "0"}, "lora")     # for a value written on the command line or in a file
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache, wraps
from itertools import takewhile
from typing import Annotated, Any, TypeAlias, TypeVar, cast, dataclass_transform, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validating
from pydantic_core import ErrorDetails

from peftbench.core.syntax import LARGEST, format_value, visible
from peftbench.errors import PluginError, RequestError

T = TypeVar("T")

AtLeast1: TypeAlias = Annotated[int, Field(ge=1, le=LARGEST)]
Count: TypeAlias = Annotated[int, Field(gt=0, le=LARGEST)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, lt=1)]  # a dropout, a momentum
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]  # of some whole, never nothing

_MUST: Mapping[str, str] = {
    "greater_than_equal": "be at least {ge}",
    "greater_than": "be above {gt}",
    "less_than_equal": "be at most {le}",
    "less_than": "be below {lt}",
    "literal_error": "be {expected}",
    "too_short": "not be empty",
    "too_long": "have at most {max_length} values",
    "tuple_type": "be a list",
    "dataclass_type": "be a name such as lora[r=4]",
    "dict_type": "be a table",
    "model_type": "be a table",
    "extra_forbidden": "be left out: there is no such key",
    "missing": "be given",
}
_KINDS = {"int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false"}
_KINDS |= {"string": "text"}


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
def checked(kind: type[T]) -> type[T]:
    """Make a frozen dataclass that checks the types and limits of its fields, without converting them.

    A wrong value raises RequestError, which names the class by its module, `lora: r must be at least 1, got 0.`, or by
    its attribute `called`.
    """
    made: Any = validating(frozen=True, config=ConfigDict(strict=True, extra="forbid"))(kind)
    construct = made.__init__
    names = [f.name for f in fields(made) if f.init]

    @wraps(construct)
    def __init__(self: Any, *args: Any, **values: Any) -> None:  # noqa: ANN401, N807 - replaces the generated one
        try:
            construct(self, **dict(zip(names, args, strict=False)), **values)
        except ValidationError as error:
            who = vars(type(self)).get("called") or type(self).__module__.rpartition(".")[2]
            raise RequestError(sentence(error, who)) from None

    made.__init__ = __init__
    return cast("type[T]", made)


def build(kind: type[T], values: Mapping[str, Any], who: str, name: Callable[[str], str] = str) -> T:
    """Build a dataclass from written values, converted to the types of its fields.

    `who` begins the sentence of a RequestError, and `name` is how a field is written there.
    """
    if not is_dataclass(kind):
        raise PluginError(f"{who}: a plug-in must be a dataclass, and {kind.__name__} is not one.")
    known = {f.name: f for f in fields(kind) if f.init}
    aliases: Mapping[str, str] = getattr(kind, "aliases", {})
    values = {aliases.get(key, key): value for key, value in values.items()}
    if unknown := sorted(set(values) - set(known)):
        has = f"its fields are {', '.join(known)}" if known else "it has no fields"
        raise RequestError(f"{who} has no field {unknown[0]!r}; {has}.")
    required = [f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [field_name for field_name in required if field_name not in values]:
        raise RequestError(f"{who} needs a value for {missing[0]!r}.")
    several = fields_of_many(kind)
    given = {key: _plain(value, several=key in several) for key, value in values.items()}
    try:
        return TypeAdapter(kind).validate_python(given, strict=False)
    except ValidationError as error:
        raise RequestError(sentence(error, who, name)) from None


@cache
def fields_of_many(kind: type) -> frozenset[str]:
    """Return the names of a dataclass's fields that hold several values."""
    return frozenset(name for name, hint in get_type_hints(kind).items() if get_origin(hint) is tuple)


def sentence(error: ValidationError, who: str | os.PathLike[str] = "", name: Callable[[str], str] = str) -> str:
    """Return the first fault that pydantic found as a sentence such as `lora: r must be at least 1, got 0.`.

    A validator of a field raises ValueError("must be even"), which takes the place of `must be at least 1`; one of
    several fields raises ValueError("r and alpha differ"), which takes the place of all after `lora: `.
    """
    first, *others = error.errors(include_url=False)
    if first["type"] == "value_error" and not first["loc"]:
        return f"{who}: {first.get('ctx', {}).get('error')}."
    same = [first, *(one for one in others if one["loc"][:1] == first["loc"][:1] and one["input"] is first["input"])]
    places = zip(*(one["loc"] for one in same), strict=False)
    shared = [steps[0] for steps in takewhile(lambda steps: len(set(steps)) == 1, places)]  # not a union's members
    where = (
        name(".".join(step for step in shared if isinstance(step, str) and step != "[key]")) if shared else "the value"
    )
    return f"{f'{who}: ' if who else ''}{where} {_must(same)}{_got(first)}."


def _must(faults: Sequence[ErrorDetails]) -> str:
    if (own := faults[0])["type"] == "value_error":
        return str(own.get("ctx", {}).get("error"))
    return f"must {' or '.join(dict.fromkeys(_requirement(fault) for fault in faults)).replace(' or be ', ' or ')}"


def _requirement(fault: ErrorDetails) -> str:
    kind = fault["type"]
    if kind in _MUST:
        return _MUST[kind].format(**{key: format_value(limit) for key, limit in fault.get("ctx", {}).items()})
    wanted = _KINDS.get(kind.partition("_")[0])
    return f"be {wanted}" if wanted else f"be valid ({fault['msg']})"


def _got(fault: ErrorDetails) -> str:
    if fault["type"] in {"extra_forbidden", "missing"}:
        return ""
    return f", got {visible(format_value(fault['input'])) or 'nothing':.80}"


def _plain(value: Any, *, several: bool) -> Any:  # noqa: ANN401 - typed by its field
    """Return a single value of several as a tuple, and a boolean as a word, since pydantic accepts True as 1."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item, several=False) for item in value)
    if isinstance(value, bool):
        value = str(value).lower()
    return (value,) if several and isinstance(value, str | int | float) else value
