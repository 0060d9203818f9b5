"""How things are written: `lora[r=4,sites=qkv+proj]`, `timm:NAME[depth=8]@random`, `1%`, `100k`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftbench.errors import RequestError

_SPEC = re.compile(
    r"(?P<name>[A-Za-z0-9_\-]+)(:(?P<argument>[^\[\]@]+))?(\[(?P<fields>[^\[\]]*)\])?(?P<random>@random)?"
)
PATHS = ("folder", "table")  # data sets behind whose colon stands a path, which may hold anything
LARGEST = 2**31 - 1  # of any number that a study may hold
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Spec:
    """A plug-in's name with what was written behind it."""

    name: str
    argument: str | None = None  # after the colon: a path, a model's name
    fields: Mapping[str, Any] = field(default_factory=dict)
    random: bool = False  # backbones: the same network with random weights

    def __str__(self) -> str:
        """As the user would write it."""
        inside = ",".join(f"{k}={format_value(v)}" for k, v in self.fields.items())
        argument = f":{self.argument}" if self.argument else ""
        return f"{self.name}{argument}{f'[{inside}]' if inside else ''}{'@random' if self.random else ''}"


def parse(text: str) -> Spec:
    """One spec. A text with a slash and no colon before it is a folder of images, and a path may hold anything."""
    text = text.strip()
    kind, colon, path = text.partition(":")
    if "/" in kind or (kind in PATHS and path):
        return Spec(kind, path) if colon and kind in PATHS else Spec("folder", text)
    if not (found := _SPEC.fullmatch(text)):
        raise RequestError(f"Cannot read {text!r}: write NAME, NAME[field=value,...] or NAME:ARGUMENT.")
    pairs = [pair.partition("=") for pair in (found["fields"] or "").split(",") if pair.strip()]
    if bad := [key for key, equals, _ in pairs if not equals]:
        raise RequestError(f"In {text!r}, {bad[0]!r} has no value: write field=value.")
    values = {key.strip(): _value(value.strip()) for key, _, value in pairs}
    if len(values) < len(pairs):
        raise RequestError(f"In {text!r}, a field is written twice; once will do.")
    return Spec(found["name"], found["argument"], values, bool(found["random"]))


def texts(text: str) -> tuple[str, ...]:
    """Specs, numbers or shares separated by commas outside brackets."""
    return tuple(piece.strip() for piece in re.split(r",(?![^\[]*\])", text) if piece.strip())


def _value(text: str) -> Any:  # noqa: ANN401 - typed by the field it is for
    if text.endswith("%"):
        return _number(text[:-1], text) / 100
    return tuple(text.split("+")) if "+" in text and not _NUMBER.fullmatch(text) else text


def format_value(value: object) -> str:
    """As it would be written: 1 for 1.0, but never fewer digits than it takes to read the same number back."""
    if isinstance(value, (tuple, list)):
        return "+".join(map(format_value, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _number(text: str, whole: str, scale: float = 1.0) -> float:
    try:
        number = float(text) * scale
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"Cannot read {whole!r} as a number.")
    return number


def budget(text: str) -> float | int:
    """A share of the backbone's weights (`1%`, `0.01`) as a float in (0, 1], or a count (`100k`, `0.3M`) as an int."""
    text = text.strip()
    scale = {"k": 1_000, "M": 1_000_000}.get(text[-1:])
    number = _number(text[:-1], text, scale or 1) if scale or text.endswith("%") else _number(text, text)
    if scale:
        value: float | int = round(number)
    elif text.endswith("%"):
        value = number / 100
    else:
        value = round(number) if text.isdigit() or (number > 1 and number.is_integer()) else number
    if not 0 < value <= (1 if isinstance(value, float) else LARGEST):
        raise RequestError(
            f"The ratio {text!r} is out of range: shares lie above 0% and at most at 100%, counts from 1 to {LARGEST}."
        )
    return value
