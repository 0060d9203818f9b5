"""What a rule found, and how rules are run: an exception is a failed rule, never the end of the check."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")
Verdict = Literal["passed", "failed", "skipped"]
Rule = Callable[[T], str]  # says what it saw; raises Broken or Skipped with a sentence


@dataclass(frozen=True)
class Finding:
    """One rule on one network, or on one part of a plug-in."""

    rule: str
    network: str  # "plain", "clip", "dinov2"; "" where the rule looks at none
    verdict: Verdict
    says: str


class Broken(Exception):  # noqa: N818 - a verdict, not a mishap
    """The rule does not hold."""


class Skipped(Exception):  # noqa: N818 - likewise
    """The rule does not apply."""


def judge(rules: Iterable[Rule[T]], subject: T, network: str = "") -> Iterator[Finding]:
    """Each rule's finding. Unless the first one holds the others are skipped: it is what they stand on."""
    first: Finding | None = None
    for rule in rules:
        if first is not None and first.verdict != "passed":
            yield Finding(name(rule), network, "skipped", f"Not looked at, for `{first.rule}` {first.verdict}.")
            continue
        finding = _judged(rule, subject, network)
        first = first or finding
        yield finding


def name(rule: Rule[T]) -> str:
    """As a table shows it."""
    return rule.__name__.replace("_", " ")


def _judged(rule: Rule[T], subject: T, network: str) -> Finding:
    try:
        return Finding(name(rule), network, "passed", rule(subject))
    except Broken as broken:
        return Finding(name(rule), network, "failed", str(broken))
    except Skipped as skipped:
        return Finding(name(rule), network, "skipped", str(skipped))
    except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and the other rules go on
        words = " ".join(str(error).split())
        return Finding(name(rule), network, "failed", f"It raised {type(error).__name__}: {words[:300]}")


def demand(holds: object, sentence: str) -> None:
    """Raise Broken with the sentence unless it holds."""
    if not holds:
        raise Broken(sentence)


def failed(findings: Sequence[Finding]) -> list[str]:
    """One line for each rule that does not hold; empty when all is well."""
    return [f"{f.rule}{f' [{f.network}]' if f.network else ''}: {f.says}" for f in findings if f.verdict == "failed"]


def refuse_torch(module: str) -> str:
    """Raise Broken if importing a module brings torch."""
    if module.partition(".")[0] == "peftbench":
        raise Skipped("peftbench's own imports are watched by its layers (pyproject.toml).")
    demand(not brings_torch(module), f"Importing {module} brings torch, which takes seconds.")
    return f"{module} does not import torch."


def brings_torch(module: str) -> bool:
    """Whether importing a module imports torch, in a process of its own."""
    code = f"import importlib, sys; importlib.import_module({module!r}); sys.exit('torch' in sys.modules)"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], env=paths, check=False).returncode != 0  # noqa: S603
