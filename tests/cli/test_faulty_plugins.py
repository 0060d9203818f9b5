"""A faulty plug-in is named and ends neither the program nor the study."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import studies

Install = Callable[[str, str, str], None]
Refusal = Callable[[Sequence[str]], str]
MAJORITY = ("run", "--methods", "majority", "--no-baselines", "--recipe", "quick", "--backbone", "mini", "--jobs", "1")
METHOD = """
import sys
from dataclasses import dataclass
from peftbench.method import Method
from peftbench.plan import Plan
@dataclass(frozen=True)
class plugin(Method):
    def plan(self, vit, probe):
        return Plan()
"""
FAULTY = ("--methods", "faulty", "--no-baselines", "--seeds", "0")
GLOOMY_DATA = """
class Gloomy:
    card = None
    def load(self, root, seed):
        raise KeyError("x")
plugin = Gloomy()
"""
DRAWN_DATA = """
import numpy as np
from peftbench.contract import DatasetCard, Part, Splits
def part(name, n):
    names = tuple(f"{name} {i}" for i in range(n))
    pixels = np.random.default_rng(n).integers(0, 255, (n, 8, 8, 3)).astype(np.uint8)
    return Part(pixels, np.arange(n) % 2, names, names)
class Drawn:
    card = DatasetCard(title="drawn", modality="m", classes=("a", "b"), licence="l", source="s")
    def load(self, root, seed):
        return Splits(part("train", 12), part("val", 6), part("test", 8), "drawn")
plugin = Drawn()
"""
LEAVING_CARD = """
    @property
    def card(self):
        import sys
        sys.exit(0)
"""
GLOOMY_REPORT = """
class Gloomy:
    suffix = ".x"
    def write(self, results, out):
        raise KeyError("x")
plugin = Gloomy()
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with one entry point into the path of this process: kind, name, content of its module."""
    place = tmp_path / "packages"

    def one(kind: str, name: str, content: str) -> None:
        info = place / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        module = f"{name}_{abs(hash(str(tmp_path)))}"
        (info / "entry_points.txt").write_text(f"[peftbench.{kind}]\n{name} = {module}:plugin\n")
        (place / f"{module}.py").write_text(content)
        monkeypatch.syspath_prepend(place)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    studies.draw(tmp_path / "images", 8)
    return one


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command that ends with 2, and return its only line on stderr."""

    def one(words: Sequence[str]) -> str:
        assert studies.call(words, monkeypatch) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return one


def test_a_metric_that_raises_is_undefined_and_named_in_the_record(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("metrics", "gloomy", "def plugin(logits, labels):\n    raise KeyError('x')\n")
    assert studies.call([*MAJORITY, "--datasets", "./images"], monkeypatch) == 0
    (record,) = studies.records(tmp_path / "runs").values()
    assert record.choices[record.rule].test["gloomy"] is None
    assert record.choices[record.rule].test["accuracy"] is not None
    assert [note for note in record.notes if note.startswith("The metric 'gloomy' (gloomy_")] != []
    assert any("failed: KeyError: 'x'" in note for note in record.notes)


def test_a_metric_that_ends_the_program_at_its_import_does_not(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("metrics", "leaver", "import sys\nsys.exit(0)\n")
    assert studies.call([*MAJORITY, "--datasets", "./images"], monkeypatch) == 0
    (record,) = studies.records(tmp_path / "runs").values()
    assert record.status == "done"
    assert any("cannot be loaded: SystemExit: 0" in note for note in record.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import sys\nsys.exit(0)\n", "cannot be loaded: SystemExit: 0"),
        ("plugins = 1\n", "cannot be loaded: AttributeError:"),
        (GLOOMY_DATA, "failed: KeyError: 'x'"),
        ("plugin = 42\n", "has no 'load'; a data set must have it"),
    ],
)
def test_a_faulty_data_set_is_one_sentence(content: str, message: str, install: Install, refusal: Refusal) -> None:
    install("datasets", "gloomy", content)
    line = refusal([*MAJORITY, "--datasets", "gloomy"])
    assert "The data set 'gloomy' (gloomy_" in line
    assert message in line


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("np.arange(n) % 2", "np.arange(n)", "its labels are not within 0 to 1 in train"),
        ("np.arange(n) % 2", "np.arange(n) % 2 - 1", "its labels are not within 0 to 1 in train"),
        ("np.arange(n) % 2", "np.arange(n - 1) % 2", "there is not one label, name and group for each image in train"),
        ('("a", "b")', '("a", "a")', "its classes are not distinct texts"),
        ("(n, 8, 8, 3)", "(n, 8)", "its pixels are uint8 (12, 8) instead of uint8 (n, H, W, 3) in train"),
    ],
)
@pytest.mark.parametrize("words", [["data", "check", "drawn"], [*MAJORITY, "--datasets", "drawn"]])
def test_content_that_breaks_the_contract_is_one_sentence(
    right: str, wrong: str, message: str, words: list[str], install: Install, refusal: Refusal
) -> None:
    assert right in DRAWN_DATA
    install("datasets", "drawn", DRAWN_DATA.replace(right, wrong))
    line = refusal(words)
    assert line.startswith("peftbench: The data set 'drawn' (drawn_")
    assert line.endswith(f" failed: {message}.")


def test_sound_content_of_a_plugin_is_accepted(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("datasets", "drawn", DRAWN_DATA)
    assert studies.call(["data", "check", "drawn"], monkeypatch) == 0


def test_a_data_set_that_ends_the_program_does_not(install: Install, refusal: Refusal) -> None:
    install(
        "datasets",
        "leaver",
        GLOOMY_DATA.replace("card = None", LEAVING_CARD).replace('raise KeyError("x")', "return self.card"),
    )
    for words in ([*MAJORITY, "--datasets", "leaver"], ["data", "check", "leaver"]):
        line = refusal(words)
        assert "The data set 'leaver' (leaver_" in line
        assert line.endswith(" failed: SystemExit: 0")


def test_a_metric_cannot_change_the_predictions(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("metrics", "a_changer", "def plugin(logits, labels):\n    logits[:] = 0\n    return {1: 0.5}\n")
    assert studies.call([*MAJORITY, "--datasets", "./images"], monkeypatch) == 0
    (record,) = studies.records(tmp_path / "runs").values()
    assert record.choices[record.rule].test["a_changer"] is None
    assert any("failed: ValueError: assignment destination is read-only" in note for note in record.notes)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    def count(self, vit):\n        raise ValueError('x')\n", "failed: ValueError: x"),
        ("    def plan(self, vit, probe):\n        sys.exit(0)\n", "failed: SystemExit: 0"),
        (
            "    def plan(self, vit, probe):\n        return Plan(tune=frozenset({'no.weight'}))\n",
            "failed: The plan names 'no.weight', which is not in this network.",
        ),
        ("    version = 'one'\n", "has the version 'one'; it must be a whole number."),
    ],
)
@pytest.mark.parametrize("words", [["show", "method", "faulty"], ["plan", "--datasets", "./images", *FAULTY]])
def test_a_faulty_method_is_one_sentence(
    body: str, message: str, words: list[str], install: Install, refusal: Refusal
) -> None:
    install("methods", "faulty", METHOD + body)
    line = refusal(words)
    assert line.startswith("peftbench: The method 'faulty' (faulty_")
    assert line.endswith(message)


def test_a_metric_that_runs_out_of_memory_is_a_failed_record(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("metrics", "glutton", "def plugin(logits, labels):\n    raise MemoryError\n")
    assert studies.call([*MAJORITY, "--datasets", "./images"], monkeypatch) == 1
    (record,) = studies.records(tmp_path / "runs").values()
    assert (record.status, record.reason) == ("failed", "MemoryError: ")


def test_a_metric_cannot_replace_the_value_of_another(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("metrics", "boaster", "def plugin(logits, labels):\n    return {'accuracy': 2.0, 'recall_0': 2.0}\n")
    assert studies.call([*MAJORITY, "--datasets", "./images"], monkeypatch) == 0
    (record,) = studies.records(tmp_path / "runs").values()
    scores = record.choices[record.rule].test
    assert scores["accuracy"] != 2.0
    assert scores["recall_0"] != 2.0
    assert scores["boaster"] is None
    assert any("failed: it returned 'accuracy', which another metric returns" in note for note in record.notes)


def test_sys_exit_of_a_library_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peftbench.study.resolve.resolve", lambda *_, **__: sys.exit(0))
    assert studies.call([*MAJORITY, "--datasets", "phantom_ct"], monkeypatch) == 2
    assert "ended the program, with the exit code 0" in capsys.readouterr().err


def test_a_report_that_raises_is_named(install: Install, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    install("reports", "gloomy", GLOOMY_REPORT)
    assert studies.call([*MAJORITY, "--datasets", "./images"], monkeypatch) == 0
    assert "failed: KeyError: 'x'" in refusal(["report", "--format", "gloomy"])


def test_a_report_that_returns_no_paths_is_named(
    install: Install, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("reports", "gloomy", GLOOMY_REPORT.replace('raise KeyError("x")', "return [1]"))
    assert studies.call([*MAJORITY, "--datasets", "./images"], monkeypatch) == 0
    line = refusal(["report", "--format", "gloomy"])
    assert line.startswith("peftbench: The report 'gloomy' (gloomy_")


def test_a_method_that_ends_the_program_is_a_failed_record(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys\nfrom dataclasses import dataclass\nfrom peftbench.method import Method\n"
        "@dataclass(frozen=True)\nclass plugin(Method):\n"
        "    def plan(self, vit, probe):\n"
        "        if vit.cls_token.is_meta:\n            return __import__('peftbench.plan').plan.Plan()\n"
        "        sys.exit(0)\n"
    )
    install("methods", "leaver", code)
    asked = [*("leaver" if word == "majority" else word for word in MAJORITY), "--steps", "2", "--batch", "4"]
    assert studies.call([*asked, "--datasets", "./images"], monkeypatch) == 1
    (record,) = studies.records(tmp_path / "runs").values()
    assert record.status == "failed"
    assert record.reason.startswith("The method 'leaver' (leaver_")
    assert record.reason.endswith("failed: SystemExit: 0")
