"""Stored steps: every result of an analysis is a file of its own, so that a second call computes only what is missing.

STORE/analysis/KIND/KEY.json or KEY.safetensors     KEY: of the SHA-256 of everything that decides the result

The files hold no names of images. A file that was modified is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from peftbench.storage import checked_json, checked_tensors
from peftbench.storage.files import sha256_json

VERSION = 1  # of the computations; another one computes everything again
Facts: TypeAlias = Mapping[str, Any]  # JSON: what decides a result


@dataclass(frozen=True)
class Steps:
    """The results below a folder."""

    root: Path

    def read(self, kind: str, facts: Facts) -> Any | None:  # noqa: ANN401 - any JSON value
        """Return the value of a step, None if it is missing or was modified."""
        key = _key(facts)
        try:
            return checked_json.read(self.root / kind / f"{key}.json", key)
        except (OSError, ValueError):
            return None

    def write(self, kind: str, facts: Facts, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Write the value of a step. Raises OSError."""
        key = _key(facts)
        checked_json.write(self.root / kind / f"{key}.json", value, key)

    def value(self, kind: str, facts: Facts, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - any JSON value
        """Return the value of a step, made and written if it is missing."""
        found = self.read(kind, facts)
        if found is None:
            found = make()
            self.write(kind, facts, found)
        return found

    def tensors(self, kind: str, facts: Facts, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of a step, made and written if they are missing."""
        key = _key(facts)
        file = self.root / kind / f"{key}.safetensors"
        with suppress(*checked_tensors.DAMAGE):
            found, place = checked_tensors.read(file)
            if place == key:
                return found
        made = {name: tensor.contiguous() for name, tensor in make().items()}
        checked_tensors.write(file, made, key)
        return made


def _key(facts: Facts) -> str:
    return sha256_json({**facts, "version": VERSION})[:24]


@dataclass(frozen=True)
class Unit:
    """A piece of work with a name for the progress display; `run` returns its result in a few words."""

    name: str
    run: Callable[[], str]
