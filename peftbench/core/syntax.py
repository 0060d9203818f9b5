"""The notation of studies: `lora[r=4,sites=qkv+proj]`, `timm:NAME[depth=8]@random`, `1%`, `100k`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peftbench.errors import RequestError

_SPEC = re.compile(
    r"(?P<name>[A-Za-z0-9_\-]+)(:(?P<argument>[^\[\]@]+))?(\[(?P<fields>[^\[\]]*)\])?(?P<random>@random)?"
)
RANDOM = "@random"  # after a backbone: with random weights
PATHS = ("folder", "table")  # data sets whose argument is a path, which may contain any character
DEVICES = ("auto", "cpu", "cuda")
LARGEST = 2**31 - 1  # number in a study
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE)


def is_random(backbone: str) -> bool:
    """Return whether a backbone, as written, has random weights."""
    return backbone.endswith(RANDOM)


def without_random(backbone: str) -> str:
    """Return a backbone, as written, with its pretrained weights."""
    return backbone.removesuffix(RANDOM)


@dataclass(frozen=True)
class Spec:
    """A plug-in's name with its argument and fields, as parsed from text."""

    name: str
    argument: str | None = None  # after the colon: a path, a model's name
    fields: Mapping[str, Any] = field(default_factory=dict)
    random: bool = False  # backbones: the same network with random weights

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        """Return the text that `parse` reads back."""
        inside = ",".join(f"{k}={format_value(v)}" for k, v in self.fields.items())
        argument = f":{self.argument}" if self.argument else ""
        return f"{self.name}{argument}{f'[{inside}]' if inside else ''}{RANDOM if self.random else ''}"


def parse(text: str) -> Spec:
    """Parse one specification. A text with a slash and no colon before it is a folder of images.

    Raises RequestError.
    """
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
        raise RequestError(f"In {text!r}, a field is given twice; leave one out.")
    return Spec(found["name"], found["argument"], values, bool(found["random"]))


def texts(text: str, exists: Callable[[str], bool] = lambda _: False) -> tuple[str, ...]:
    """Split a list at the commas outside brackets.

    A comma may be part of a path: of `folder:set, v2` the longest path that `exists` is taken.
    """
    pieces, found = re.split(r",(?![^\[]*\])", text), list[str]()
    while pieces:
        lengths = range(len(pieces), 1, -1)
        count = next((n for n in lengths if exists(_path(",".join(pieces[:n]).strip()))), 1)
        found.append(",".join(pieces[:count]).strip())
        del pieces[:count]
    return tuple(piece for piece in found if piece)


def _path(text: str) -> str:
    """Return the path of a data set's specification; empty where there is none."""
    kind, colon, path = text.partition(":")
    return path if colon and kind in PATHS else text if "/" in kind else ""


def _value(text: str) -> Any:  # noqa: ANN401 - typed by the field it is for
    if text.endswith("%"):
        return _number(text[:-1], text) / 100
    return tuple(text.split("+")) if "+" in text and not _NUMBER.fullmatch(text) else text


def format_value(value: object) -> str:
    """Return a value as text: 1 for 1.0, and as many digits as it takes to read the same number back."""
    if isinstance(value, (tuple, list)):
        return "+".join(map(format_value, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def visible(text: str) -> str:
    """Return the text, quoted and with escapes if it has characters that cannot be seen."""
    return text if text.isprintable() else repr(text)


def _number(text: str, whole: str, scale: float = 1.0) -> float:
    try:
        number = float(text) * scale
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"Cannot read {whole!r} as a number.")
    return number


def known_device(name: str) -> str:
    """Return the name of a device. Raises RequestError for another word."""
    if name not in DEVICES:
        raise RequestError(f"--device must be auto, cpu or cuda, got {visible(name)}.")
    return name


def budget(text: str) -> float | int:
    """Parse a share of the backbone's parameters (`1%`, `0.01`; a float in (0, 1]) or a count (`100k`; an int)."""
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
            f"The ratio {text!r} is out of range: a share is above 0% and at most 100%, a count from 1 to {LARGEST}."
        )
    return value


def seconds(text: str) -> float:
    """Parse a duration such as `20ms`, `0.5s` or `2 s`. Raises RequestError."""
    found = re.fullmatch(r"([\d.]+)\s*(ms|s)", text.strip())
    if not found or _number(found[1], text) <= 0:
        raise RequestError(f"Cannot read the duration {text!r}: write a number with its unit, such as 20ms or 0.5s.")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)
