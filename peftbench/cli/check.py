"""`peftbench check`: the conformance rules on any plug-in, by its registered name or as PACKAGE:NAME."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from peftbench import testing
from peftbench.cli.progress import Tally
from peftbench.core.fields import build
from peftbench.core.registry import FOLDERS, registry, variant
from peftbench.core.syntax import Spec, parse
from peftbench.errors import PeftbenchError, PluginError, RequestError, UnknownNameError
from peftbench.models.method import Method
from peftbench.testing import Finding, failed

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
MARKS = {"passed": "yes", "failed": "NO", "skipped": "-"}
Findings = Mapping[str, Sequence[Finding]]


def show_check(name: str | None, data: Path, *, everything: bool, compiled: bool, as_json: bool) -> int:
    """Print what the rules found; 0 if every rule holds, else 1. Raises RequestError for what cannot be checked."""
    if (name is None) != everything:
        raise RequestError("Say what to check: NAME or PACKAGE:NAME, or --all for everything that is installed.")
    started = time.perf_counter()
    said = Console(stderr=True, highlight=False) if as_json else console
    found = check_all(data, said, compiled=compiled) if name is None else {name: check(name, data, compiled=compiled)}
    if as_json:
        told = {one: [asdict(finding) for finding in findings] for one, findings in found.items()}
        console.print_json(json.dumps(told))
    elif name is None:
        _print_all(found, time.perf_counter() - started)
    else:
        _print_one(found[name])
    return int(any(map(failed, found.values())))


def check_all(data: Path, said: Console, *, compiled: bool = False) -> dict[str, list[Finding]]:
    """The findings on everything installed, and a line on `said` as each plug-in ends."""
    names = [f"{folder}/{name}" for folder in FOLDERS for name in registry(folder).names()]
    found: dict[str, list[Finding]] = {}
    with Tally(said, "checking", len(names)) as tally:
        for name in names:
            tally.begin(name)
            started = time.perf_counter()
            found[name] = _looked_at(name, data, compiled=compiled)
            seconds = time.perf_counter() - started
            tally.end(name, f"{_in_short(found[name])}, {seconds:.1f} s", aloud=bool(failed(found[name])))
    return found


def _looked_at(name: str, data: Path, *, compiled: bool) -> list[Finding]:
    """The findings on one of many: what cannot be loaded or built is a finding itself."""
    try:
        _, plugin, spec = _found(name)
        if lacking := _needed(plugin):
            return [Finding("it is built", "", "skipped", f"{spec.name} needs a value for {lacking[0]!r}.")]
        return check(name, data, compiled=compiled)
    except PeftbenchError as error:
        return [Finding("it is built", "", "failed", str(error))]


def _needed(plugin: Any) -> list[str]:  # noqa: ANN401
    """The fields that it cannot be built without."""
    if not (isinstance(plugin, type) and is_dataclass(plugin)):
        return []
    return [f.name for f in fields(plugin) if f.init and f.default is MISSING and f.default_factory is MISSING]


def _in_short(findings: Sequence[Finding]) -> str:
    """One phrase for a line of a log."""
    broken = failed(findings)
    if broken:
        return f"FAILED {'; '.join(broken)}"
    held = sum(finding.verdict == "passed" for finding in findings)
    return f"all {held} rules hold" if held else f"not looked at: {findings[0].says}"


def check(name: str, data: Path, *, compiled: bool = False) -> list[Finding]:
    """The findings on one plug-in: `lora[r=4]`, `metrics/auc`, `timm:vit_tiny_patch16_224` or `package.module:Name`.

    Raises UnknownNameError for a name that nobody brings, PluginError for a plug-in that cannot be loaded.
    """
    folder, plugin, spec = _found(name)
    checks: dict[str, Callable[[], list[Finding]]] = {
        "methods": lambda: testing.check_method(_made(plugin, spec, name), compiled=compiled),
        "datasets": lambda: testing.check_dataset(_made(plugin, spec, name), data),
        "backbones": lambda: testing.check_backbone(_made(plugin, spec, name)),
        "metrics": lambda: testing.check_metric(plugin, spec.name),
        "reports": lambda: testing.check_report(plugin),
    }
    return checks[folder]()


def _found(name: str) -> tuple[str, Any, Spec]:
    """The folder whose rules hold for it, the plug-in, and what was written behind its name."""
    folder, slash, rest = name.partition("/")
    asked = rest if slash and folder in FOLDERS else name
    head = asked.partition(":")[0].partition("[")[0]
    base, values = variant(head)
    if base != head:
        return "methods", registry("methods").get(base), Spec(base, None, {**values, **parse(asked).fields})
    folders = [folder] if asked is rest else [f for f in FOLDERS if head in registry(f).names()]
    if folders:
        return folders[0], registry(folders[0]).get(head), parse(asked)
    if ":" not in asked:
        raise UnknownNameError("plug-in", head, {n for f in FOLDERS for n in registry(f).names()})
    plugin = _imported(asked)
    return _folder(plugin, asked), plugin, Spec(asked.partition(":")[2])


def _imported(name: str) -> Any:  # noqa: ANN401 - which contract it keeps is found out next
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # a module in the working folder, as `python -m` finds it
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        raise PluginError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")


def _folder(plugin: Any, name: str) -> str:  # noqa: ANN401
    """Which contract a plug-in keeps, by what it offers."""
    if isinstance(plugin, Method) or (isinstance(plugin, type) and issubclass(plugin, Method)):
        return "methods"
    offers = {"backbones": ("network", "weights"), "datasets": ("card", "load"), "reports": ("suffix", "write")}
    for folder, attributes in offers.items():
        if all(hasattr(plugin, attribute) for attribute in attributes):
            return folder
    if callable(plugin) and not isinstance(plugin, type):
        return "metrics"
    raise RequestError(f"{name} is no method, data set, backbone, metric or report.")


def _made(plugin: Any, spec: Spec, name: str) -> Any:  # noqa: ANN401
    """An instance, from what was written behind the name if the plug-in is a class."""
    argument = {} if spec.argument is None else {_first_field(plugin): spec.argument}
    return build(plugin, {**argument, **spec.fields}, name) if isinstance(plugin, type) else plugin


def _first_field(plugin: Any) -> str:  # noqa: ANN401
    return str(next(iter(getattr(plugin, "__dataclass_fields__", {"argument": None}))))


def _print_one(findings: Sequence[Finding]) -> None:
    networks = list(dict.fromkeys(finding.network for finding in findings))
    table = Table("rule", *(network or "holds" for network in networks), box=None, pad_edge=False)
    cells = {(finding.rule, finding.network): MARKS[finding.verdict] for finding in findings}
    for rule in dict.fromkeys(finding.rule for finding in findings):
        table.add_row(rule, *(cells.get((rule, network), "") for network in networks))
    console.print(table)
    for line in dict.fromkeys(f"- {f.rule}: {f.says}" for f in findings if f.verdict == "skipped"):
        console.print(line, markup=False)
    for line in failed(findings):
        console.print(f"NO {line}", markup=False)


def _print_all(found: Findings, seconds: float) -> None:
    table = Table("plug-in", *MARKS, box=None, pad_edge=False)
    for name, findings in found.items():
        table.add_row(name, *(str(sum(f.verdict == verdict for f in findings)) for verdict in MARKS))
    console.print(table)
    for name, findings in found.items():
        for line in failed(findings):
            console.print(f"NO {name}: {line}", markup=False)
    broken = [name for name, findings in found.items() if failed(findings)]
    unseen = [name for name, findings in found.items() if all(f.verdict == "skipped" for f in findings)]
    _say(f"{len(found) - len(broken) - len(unseen)} of {len(found)} plug-ins keep every rule; {seconds:.0f} s.")
    for words, names in (("Not looked at", unseen), ("A rule does not hold", broken)):
        if names:
            _say(f"{words}: {', '.join(names)}.")


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
