"""`peftbench check`: the conformance rules on any plug-in, by its registered name or as PACKAGE:NAME."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftbench.cli.console import errors, make_table, output, say, show, show_json
from peftbench.cli.options import DataOption, JsonOption
from peftbench.errors import PeftbenchError, RequestError, UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console

    from peftbench.core.syntax import Spec
    from peftbench.testing import Finding

VERDICTS: Mapping[str, str] = MappingProxyType({"passed": "yes", "failed": "NO", "skipped": "-"})  # as printed


def check(
    name: Annotated[str | None, typer.Argument(help="A plug-in such as lora or metrics/auc, or PACKAGE:NAME.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that is installed.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Also with torch.compile: 0.7 s per method.")] = False,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Check a plug-in against the conformance rules. The exit code is 1 if a rule does not hold."""
    from peftbench.storage.folders import data_folder

    raise typer.Exit(show_check(name, data_folder(data), everything=everything, compiled=compiled, as_json=json))


def show_check(name: str | None, data: Path, *, everything: bool, compiled: bool, as_json: bool) -> int:
    """Print the findings; return 0 if every rule holds, else 1. Raises RequestError for what cannot be checked."""
    if (name is None) != everything:
        raise RequestError("check needs what to check: give NAME or PACKAGE:NAME, or --all for everything installed.")
    started = time.perf_counter()
    console = errors() if as_json else output()
    found = (
        check_all(data, console, compiled=compiled)
        if name is None
        else {name: check_one(name, data, compiled=compiled)}
    )
    from peftbench.testing import failed

    if as_json:
        show_json({one: [asdict(finding) for finding in findings] for one, findings in found.items()})
    elif name is None:
        _show_all(found, time.perf_counter() - started)
    else:
        _show_one(found[name])
    return int(any(map(failed, found.values())))


# --- checking --------------------------------------------------------------------------------------------------------


def check_all(data: Path, console: Console, *, compiled: bool = False) -> dict[str, list[Finding]]:
    """Return the findings on everything installed; `console` gets a line as each plug-in ends."""
    from peftbench.cli.progress import Tally
    from peftbench.core.registry import FOLDERS, registry
    from peftbench.testing import failed

    names = [f"{folder}/{name}" for folder in FOLDERS for name in registry(folder).names()]
    found: dict[str, list[Finding]] = {}
    with Tally(console, "checking", len(names)) as tally:
        for name in names:
            tally.begin(name)
            started = time.perf_counter()
            found[name] = _check_if_buildable(name, data, compiled=compiled)
            seconds = time.perf_counter() - started
            tally.end(name, f"{_in_short(found[name])}, {seconds:.1f} s", keep=bool(failed(found[name])))
    return found


def _check_if_buildable(name: str, data: Path, *, compiled: bool) -> list[Finding]:
    """Return the findings; a plug-in that cannot be loaded or built is itself a finding."""
    from peftbench.testing import Finding

    try:
        _, plugin, spec = _find(name)
        if lacking := _required_fields(plugin):
            return [Finding("it is built", "", "skipped", f"{spec.name} needs a value for {lacking[0]!r}.")]
        return check_one(name, data, compiled=compiled)
    except PeftbenchError as error:
        return [Finding("it is built", "", "failed", str(error))]


def _required_fields(plugin: Any) -> list[str]:  # noqa: ANN401 - any plug-in
    if not (isinstance(plugin, type) and is_dataclass(plugin)):
        return []
    return [f.name for f in fields(plugin) if f.init and f.default is MISSING and f.default_factory is MISSING]


def _in_short(findings: Sequence[Finding]) -> str:
    from peftbench.testing import failed

    broken = failed(findings)
    if broken:
        return f"FAILED {'; '.join(broken)}"
    held = sum(finding.verdict == "passed" for finding in findings)
    return f"all {held} rules hold" if held else f"not checked: {findings[0].message}"


def check_one(name: str, data: Path, *, compiled: bool = False) -> list[Finding]:
    """Return the findings on a plug-in.

    Args:
        name: such as `lora[r=4]`, `metrics/auc`, `timm:vit_tiny_patch16_224` or `package.module:Name`.
        data: the folder that holds the data sets.
        compiled: whether methods are also checked under torch.compile.

    Raises UnknownNameError, or PluginError for a plug-in that cannot be loaded.
    """
    folder, plugin, spec = _find(name)  # before torch is imported: a typing error is answered at once
    from peftbench import testing

    checks: dict[str, Callable[[], list[Finding]]] = {
        "methods": lambda: testing.check_method(_build(plugin, spec, name), compiled=compiled),
        "datasets": lambda: testing.check_dataset(_build(plugin, spec, name), data),
        "backbones": lambda: testing.check_backbone(_build(plugin, spec, name)),
        "metrics": lambda: testing.check_metric(plugin, spec.name),
        "reports": lambda: testing.check_report(plugin),
    }
    return checks[folder]()


# --- finding what is meant -------------------------------------------------------------------------------------------


def _find(name: str) -> tuple[str, Any, Spec]:
    """Return the folder whose contract holds for a plug-in, the plug-in, and its parsed name with arguments."""
    from peftbench.core.registry import FOLDERS, registry, variant
    from peftbench.core.syntax import Spec, parse

    folder, slash, rest = name.partition("/")
    text = rest if slash and folder in FOLDERS else name
    head = text.partition(":")[0].partition("[")[0]
    base, values = variant(head)
    if base != head:
        return "methods", registry("methods").get(base), Spec(base, None, {**values, **parse(text).fields})
    folders = [folder] if text is rest else [f for f in FOLDERS if head in registry(f).names()]
    if folders:
        return folders[0], registry(folders[0]).get(head), parse(text)
    if ":" not in text:
        raise UnknownNameError("plug-in", head, {n for f in FOLDERS for n in registry(f).names()})
    plugin = _load(text)
    return _contract(plugin, text), plugin, Spec(text.partition(":")[2])


def _load(name: str) -> Any:  # noqa: ANN401 - any plug-in
    from peftbench.core.guarded import guard

    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # a module in the working folder, as `python -m` finds it
    try:
        with guard(f"{name} cannot be loaded"):
            return getattr(import_module(module), attribute)
    finally:
        sys.path.remove("")


def _contract(plugin: Any, name: str) -> str:  # noqa: ANN401
    """Return the folder whose contract a plug-in has the attributes of."""
    from peftbench.core.registry import CONTRACTS
    from peftbench.models.method import Method

    if isinstance(plugin, Method) or (isinstance(plugin, type) and issubclass(plugin, Method)):
        return "methods"
    for folder in ("backbones", "datasets", "reports"):
        if all(hasattr(plugin, attribute) for attribute in CONTRACTS[folder]):
            return folder
    if callable(plugin) and not isinstance(plugin, type):
        return "metrics"
    raise RequestError(f"{name} is not a method, data set, backbone, metric or report.")


def _build(plugin: Any, spec: Spec, name: str) -> Any:  # noqa: ANN401
    """Return an instance with the fields given in the name; a plug-in that is no class is returned as it is."""
    from peftbench.core.fields import build

    argument = {} if spec.argument is None else {_first_field(plugin): spec.argument}
    return build(plugin, {**argument, **spec.fields}, name) if isinstance(plugin, type) else plugin


def _first_field(plugin: Any) -> str:  # noqa: ANN401
    return str(next(iter(getattr(plugin, "__dataclass_fields__", {"argument": None}))))


# --- printing --------------------------------------------------------------------------------------------------------


def _show_one(findings: Sequence[Finding]) -> None:
    from peftbench.testing import failed

    networks = list(dict.fromkeys(finding.network for finding in findings))
    cells = {(finding.rule, finding.network): VERDICTS[finding.verdict] for finding in findings}
    rules = dict.fromkeys(finding.rule for finding in findings)
    rows = [[rule, *(cells.get((rule, network), "") for network in networks)] for rule in rules]
    show(make_table(["rule", *(network or "holds" for network in networks)], rows))
    for line in dict.fromkeys(f"- {f.rule}: {f.message}" for f in findings if f.verdict == "skipped"):
        say(line)
    for line in failed(findings):
        say(f"NO {line}")


def _show_all(found: Mapping[str, Sequence[Finding]], seconds: float) -> None:
    from peftbench.testing import failed

    rows = [
        [name, *(str(sum(f.verdict == verdict for f in findings)) for verdict in VERDICTS)]
        for name, findings in found.items()
    ]
    show(make_table(["plug-in", *VERDICTS], rows))
    for name, findings in found.items():
        for line in failed(findings):
            say(f"NO {name}: {line}")
    broken = [name for name, findings in found.items() if failed(findings)]
    skipped = [name for name, findings in found.items() if all(f.verdict == "skipped" for f in findings)]
    say(f"{len(found) - len(broken) - len(skipped)} of {len(found)} plug-ins keep every rule; {seconds:.0f} s.")
    for title, names in (("Not checked", skipped), ("A rule does not hold", broken)):
        if names:
            say(f"{title}: {', '.join(names)}.")
