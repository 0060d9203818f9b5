"""Run rules and collect findings; an exception in a rule is a failed finding and does not end the check."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")
Verdict = Literal["passed", "failed", "skipped"]
VERBS = {"failed": "failed", "skipped": "was skipped"}
Rule = Callable[[T], str]  # returns what it measured; raises Broken or Skipped with a message


@dataclass(frozen=True)
class Finding:
    """The result of one rule on one network."""

    rule: str
    network: str  # "plain", "clip", "dinov2"; "" for a rule without a network
    verdict: Verdict
    message: str


class Broken(Exception):  # noqa: N818 - a verdict, not an error
    """The rule does not hold."""


class Skipped(Exception):  # noqa: N818 - a verdict, not an error
    """The rule does not apply."""


def run_rules(rules: Iterable[Rule[T]], subject: T, network: str = "") -> Iterator[Finding]:
    """Yield each rule's finding. Unless the first one passes the others are skipped, as they depend on it."""
    first: Finding | None = None
    for rule in rules:
        if first is not None and first.verdict != "passed":
            yield Finding(name(rule), network, "skipped", f"Not run, because `{first.rule}` {VERBS[first.verdict]}.")
            continue
        finding = _run(rule, subject, network)
        first = first or finding
        yield finding


def name(rule: Rule[T]) -> str:
    """Return the rule's name as tables show it."""
    return rule.__name__.replace("_", " ")


def _run(rule: Rule[T], subject: T, network: str) -> Finding:
    try:
        return Finding(name(rule), network, "passed", rule(subject))
    except Broken as broken:
        return Finding(name(rule), network, "failed", str(broken))
    except Skipped as skipped:
        return Finding(name(rule), network, "skipped", str(skipped))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in may raise anything, and the other rules go on
        words = " ".join(str(error).split())
        return Finding(name(rule), network, "failed", f"Raised {type(error).__name__}: {words[:300]}")


def require(holds: object, message: str) -> None:
    """Raise Broken with the message unless `holds` is true."""
    if not holds:
        raise Broken(message)


def listed(names: Sequence[str]) -> str:
    """Return the first of some names and the number of the others; "" for none."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}" if names else ""


def failed(findings: Sequence[Finding]) -> list[str]:
    """Return one line for each failed rule; an empty list when none failed."""
    return [f"{f.rule}{f' [{f.network}]' if f.network else ''}: {f.message}" for f in findings if f.verdict == "failed"]


def refuse_torch(module: str) -> str:
    """Raise Broken if importing a module imports torch."""
    if module.partition(".")[0] == "peftbench":
        raise Skipped("Imports of peftbench itself are checked by its layers (pyproject.toml).")
    require(not imports_torch(module), f"Importing {module} must not import torch, which takes seconds.")
    return f"{module} does not import torch."


def imports_torch(module: str) -> bool:
    """Return whether importing a module imports torch, tested in a new process."""
    code = f"import importlib, sys; importlib.import_module({module!r}); sys.exit('torch' in sys.modules)"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], env=paths, check=False).returncode != 0  # noqa: S603
