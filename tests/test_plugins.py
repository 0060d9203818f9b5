"""Every registered plug-in keeps the rules of its contract; a new file is covered without touching this one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from peftbench.cli.check import check_one
from peftbench.core.registry import Registry, registry
from peftbench.errors import PeftbenchError
from peftbench.models import backbone
from peftbench.testing import check_backbone, check_dataset, check_method, check_metric, check_report, failed
from peftbench.testing.methods import ONCE, RULES
from peftbench.testing.networks import STYLES
from tests import studies

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "peftbench-example"


def names(folder: str) -> list[str]:
    return sorted(registry(folder).built_in())


# --- built-in plug-ins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("methods"))
def test_a_method_keeps_the_rules(name: str) -> None:
    findings = check_method(registry("methods").get(name))
    assert failed(findings) == []
    assert len(findings) == len(STYLES) * len(RULES) + len(ONCE)


@pytest.mark.parametrize("name", names("metrics"))
def test_a_metric_keeps_the_rules(name: str) -> None:
    assert failed(check_metric(registry("metrics").get(name), name)) == []


@pytest.mark.parametrize("name", names("reports"))
def test_a_report_keeps_the_rules(name: str) -> None:
    assert failed(check_report(registry("reports").get(name))) == []


@pytest.mark.parametrize("name", [name for name in names("datasets") if name.startswith("phantom_")])
def test_a_phantom_keeps_the_rules(name: str, tmp_path: Path) -> None:
    findings = check_dataset(registry("datasets").get(name), tmp_path)
    assert failed(findings) == []
    assert findings[0].verdict == "passed"


@pytest.mark.parametrize("name", [name for name in names("datasets") if not name.startswith("phantom_")])
def test_a_data_set_keeps_the_rules_where_its_files_are(name: str, data_root: Path) -> None:
    plugin = registry("datasets").get(name)
    if isinstance(plugin, type):
        pytest.skip("it takes an argument")
    findings = check_dataset(plugin, data_root)
    assert failed(findings) == []
    if findings[0].verdict == "skipped":
        pytest.skip(findings[0].message)


@pytest.mark.parametrize(
    "text",
    ["mini", "clip_vit_b16", "timm:vit_tiny_patch16_224[depth=1]", "open_clip:ViT-B-32-quickgelu/openai[depth=1]"],
)
def test_a_backbone_keeps_the_rules(text: str) -> None:
    assert failed(check_backbone(backbone.locate(text, blank=True).plugin)) == []


REPRESENTATIVES = ("bitfit", "shpeft", "lora", "adaptformer", "ssf", "vpt_deep", "vera")  # one of each family
COMPILES = """
import sys
from peftbench.core.registry import Registry, registry
from peftbench.testing.findings import run_rules
from peftbench.testing.methods import COMPILED
from peftbench.testing.fixture import MethodFixture
for name in sys.argv[1:]:
    (finding,) = run_rules(COMPILED, MethodFixture(registry("methods").get(name)(), "plain"))
    print(name, finding.verdict, finding.message)
"""


def test_one_method_of_each_family_compiles() -> None:
    """In a process of its own: torch.compile stumbles over the run-time checks of types that tests put everywhere."""
    command = [sys.executable, "-c", COMPILES, *REPRESENTATIVES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    verdicts = [line.split()[:2] for line in done.stdout.splitlines()]
    assert verdicts == [[name, "passed"] for name in REPRESENTATIVES], done.stdout


# --- somebody else's -------------------------------------------------------------------------------------------------

BROKEN = {
    "broken": "import nowhere_to_be_found\n",
    "raising": """
from dataclasses import dataclass
from peftbench.method import Method
@dataclass(frozen=True)
class plugin(Method):
    '''Raises what it likes.'''
    def plan(self, vit, probe):
        return {}["nothing"]
""",
}


def install(source: Path, site: Path) -> None:
    """What `pip install` leaves of a package of one module: the module, and the metadata that names its plug-ins."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    module = project["name"].replace("-", "_")
    shutil.copy(source / f"{module}.py", site)
    metadata = site / f"{module}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path into which the example and two broken packages are installed; the working folder, too."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(EXAMPLE, folder)
    for name, content in BROKEN.items():
        source = tmp_path / name
        source.mkdir()
        (source / f"theirs_{name}.py").write_text(content)
        (source / "pyproject.toml").write_text(
            f'[project]\nname = "theirs-{name}"\nversion = "1"\n'
            f'[project.entry-points."peftbench.methods"]\n{name} = "theirs_{name}:plugin"\n'
        )
        install(source, folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    yield folder
    for module in ("peftbench_example", *(f"theirs_{name}" for name in BROKEN)):
        sys.modules.pop(module, None)


@pytest.fixture
def program(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:  # noqa: ARG001
    """`peftbench ARGUMENTS` -> exit code, what it printed, what it said of errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = studies.call(arguments, monkeypatch)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_an_installed_method_is_listed_and_the_broken_one_is_named_and_skipped(program: Any) -> None:
    code, out, err = program("list", "methods", "--json")
    listed = json.loads(out)
    assert code == 0
    assert listed["query_bitfit"]["source"] == "peftbench_example:QueryBitFit"
    assert {"lora", "shpeft", "raising"} <= set(listed)
    assert "broken" not in listed
    assert "left out: The method 'broken' (theirs_broken:plugin) cannot be loaded: ModuleNotFoundError" in err
    assert len(err.splitlines()) == 1


def test_an_installed_method_is_checked_by_its_name(program: Any) -> None:
    code, out, _ = program("check", "query_bitfit[mlp=false]", "--json")
    (findings,) = json.loads(out).values()
    assert code == 0
    assert {finding["verdict"] for finding in findings if finding["rule"] != "the budget is met"} == {"passed"}


def test_an_installed_method_runs_by_its_name(program: Any) -> None:
    studies.draw(Path("images"), 4)
    asked = ("--methods", "query_bitfit", "--datasets", "./images", "--recipe", "quick", "--steps", "2", "--batch", "4")
    code, out, _ = program("run", *asked, "--evaluations", "1", "--backbone", "mini", "--no-baselines", "--jobs", "1")
    assert code == 0, out
    (record,) = studies.records(Path("runs")).values()
    assert (record.status, record.method.name) == ("done", "query_bitfit")
    assert record.counts is not None
    assert record.counts.trainable == 6 * (192 + 768)


def test_the_method_of_contributing_keeps_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    code, project = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "toml"))
    assert code is not None
    assert project is not None
    (tmp_path / "my_peft.py").write_text(textwrap.dedent("    " + code[1].lstrip()))
    monkeypatch.syspath_prepend(tmp_path)
    named = tomllib.loads(textwrap.dedent(project[1]))["project"]["entry-points"]["peftbench.methods"]["norm_scales"]
    module, _, kind = named.partition(":")
    assert failed(check_method(getattr(import_module(module), kind))) == []


@pytest.mark.usefixtures("site")
def test_the_examples_own_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    import_module("test_peftbench_example").test_it_keeps_every_rule()


def test_a_method_that_raises_while_it_is_counted_is_one_sentence(program: Any) -> None:
    for extra in (("--backbone", "mini"), ("--backbone", "mini", "--ratios", "1%")):
        code, out, err = program(
            "plan", "--methods", "raising", "--datasets", "phantom_ct", "--backbone", "mini", *extra
        )
        assert (code, out) == (2, "")
        assert err == "peftbench: The method 'raising' (theirs_raising:plugin) failed: KeyError: 'nothing'\n"
    code, _, err = program("show", "method", "raising")
    assert code == 2
    assert "The method 'raising' (theirs_raising:plugin) failed: KeyError: 'nothing'" in err


def test_a_check_of_a_method_that_raises_fails(program: Any) -> None:
    code, out, _ = program("check", "raising")
    assert code == 1
    assert "NO it runs [plain]: Raised PluginError: The method 'raising' " in out
    assert "failed: KeyError: 'nothing'" in out


def test_a_check_of_everything_goes_on_past_what_is_broken(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line as each ends, what failed by its rule at the end, exit code 1."""
    few = {"methods": ("broken", "linear", "raising"), "backbones": ("timm",), "metrics": ("accuracy",)}
    monkeypatch.setattr(Registry, "names", lambda self: few.get(self.folder, ()))
    code, out, _ = program("check", "--all")
    lines = out.splitlines()
    assert code == 1
    assert lines[0].startswith("[1/5] methods/broken: FAILED it is built: The method 'broken' (theirs_broken:plugin)")
    assert lines[1].startswith("[2/5] methods/linear: all ")
    assert lines[3].startswith("[4/5] backbones/timm: not checked: timm needs a value for 'argument'.")
    assert "NO methods/raising: it runs [plain]: Raised PluginError: The method 'raising' " in out
    assert re.fullmatch(r"2 of 5 plug-ins keep every rule; \d+ s\.", lines[-3])
    assert lines[-2:] == [
        "Not checked: backbones/timm.",
        "A rule does not hold: methods/broken, methods/raising.",
    ]


def test_an_interrupted_check_promises_nothing(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("peftbench.cli.check.check_all", interrupt)
    code, _, err = program("check", "--all")
    assert (code, err) == (130, "peftbench: interrupted.\n")


def test_a_check_of_everything_as_json_is_json_only(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "names", lambda self: ("accuracy",) if self.folder == "metrics" else ())
    code, out, err = program("check", "--all", "--json")
    assert (code, list(json.loads(out))) == (0, ["metrics/accuracy"])
    assert err.startswith("[1/1] metrics/accuracy: all ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "check needs what to check"),
        (("lorra",), "No plug-in is called 'lorra'. Did you mean lora"),
        (("broken",), "The method 'broken' (theirs_broken:plugin) cannot be loaded"),
        (("nowhere:Thing",), "nowhere:Thing cannot be loaded: ModuleNotFoundError"),
        (("pathlib:Path",), "pathlib:Path is not a method, data set, backbone, metric or report"),
        (("lora[r=0]",), "lora[r=0]: r must be at least 1, got 0."),
        (("lora", "--all"), "check needs what to check"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(program: Any, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = program("check", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_module_in_the_working_folder_is_checked_by_package_and_name(program: Any) -> None:
    Path("mine.py").write_text("def mine(logits, labels):\n    return float((logits.argmax(1) == labels).mean())\n")
    code, out, _ = program("check", "mine:mine", "--json")
    failures = {finding["rule"] for finding in json.loads(out)["mine:mine"] if finding["verdict"] == "failed"}
    assert (code, failures) == (1, {"undefined values are nan"})


def test_every_kind_is_checked_by_its_name(tmp_path: Path) -> None:
    for name in ("methods/linear", "metrics/accuracy", "reports/csv"):
        assert failed(check_one(name, tmp_path)) == []
    with pytest.raises(PeftbenchError, match="No report is called 'lora'"):
        check_one("reports/lora", tmp_path)
