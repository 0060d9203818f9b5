"""Any command line ends with 0, 1 or 2; on 2 with one sentence on stderr, and never with a traceback.

The options are those of the program itself. A few examples, always the same; `nox -s fuzz` draws thousands of others.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from peftbench.cli.app import app, main
from peftbench.execution.local import LocalExecutor
from tests import records, studies
from tests.fuzzing import drawn, fresh

WORDS = (
    *("", " ", ",", "0", "1", "-1", "60", "64", "0.5", "1%", "0,1", "nan", "inf", "1e309", "9" * 30, "true", "100k"),
    *(
        "lora",
        "lora[r=4]",
        "lora[r=0]",
        "lora[",
        "linear,",
        "mini",
        "mini@random",
        "timm:nothing",
        "quick",
        "paper[x=1]",
    ),
    *("folder:images", "./images", "folder:", "table:images", "busi", "nothing", "official", "markdown", "csv"),
    *("method", "methods", "dataset", "datasets", "recipe", "recipes", "metrics/auc", "os:getcwd", "no_module:x"),
    *("cpu", "auto", "1G", "[bold]", "[/]", "\x1b[31m", "é 肺", "\udce4", "x" * 300, "--", "-x", "a\nb", "%s", "{}"),
)
PLACES = (
    "store",
    "images",
    "a file",
    "missing/x",
    "a file/x",
    "",
    ".",
    "out.csv",
    "out.png",
    "study.toml",
    "é",
    "x" * 300,
)
PATHS = frozenset({"out", "store", "data", "cache", "weights", "study", "images"})  # parameters that take a path
HEAVY = {"measure": "show_measure", "bench": "show_bench"}  # verbs that take minutes, and what they call


def commands() -> dict[tuple[str, ...], Any]:
    """Every verb, with its words, as the program has them."""
    root: Any = typer.main.get_command(app)
    found: dict[tuple[str, ...], Any] = {}
    for name, command in root.commands.items():
        nested = getattr(command, "commands", None)
        found |= {(name, inner): one for inner, one in nested.items()} if nested else {(name,): command}
    return found


COMMANDS = commands()


def value(parameter: Any) -> st.SearchStrategy[str]:
    """A value of a parameter: paths stay in the working folder, whatever is written there."""
    places = st.sampled_from(PLACES)
    return places if parameter.name in PATHS else st.sampled_from(WORDS) | places


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A verb with some of its own arguments and options, in any order, with odd values."""
    words = draw(st.sampled_from(sorted(COMMANDS)))
    parts: list[list[str]] = []
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "argument":
            parts += [[draw(value(parameter))]] if draw(st.integers(0, 9)) else []
        elif parameter.required or not draw(st.integers(0, 4)):
            name = draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts]))
            parts.append([name] if parameter.is_flag else [name, draw(value(parameter))])
    return [*words, *(word for part in draw(st.permutations(parts)) for word in part)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images and a store; nothing trains, measures or is downloaded."""
    home = tmp_path_factory.mktemp("lines")
    studies.draw(home / "images", 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTBENCH_CACHE", str(home / "cache"))
        patch.setenv("PEFTBENCH_DATA", str(home / "data"))
        patch.setattr(LocalExecutor, "run", lambda *_: None)
        for verb, function in HEAVY.items():
            patch.setattr(f"peftbench.cli.{verb}.{function}", lambda *_, **__: 0)
        patch.setattr("peftbench.cli.check.check_one", lambda *_, **__: [])
        patch.setattr("peftbench.cli.check.check_all", lambda *_, **__: {})
        patch.setattr("peftbench.data.download.fetch", lambda *_, **__: Path("x"))
        yield home


def ends(words: list[str], patch: pytest.MonkeyPatch) -> tuple[object, str]:
    """The exit code of a command line in this process, and what it wrote to stderr."""
    patch.setattr(sys, "argv", ["peftbench", *words])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main()
    return end.value.code, err.getvalue()


@drawn
@given(words=command_lines())
def test_a_command_line_is_answered_or_refused_in_a_sentence(home: Path, words: list[str]) -> None:
    place = fresh(home)
    (place / "a file").write_bytes(b"\x00")
    (place / "study.toml").write_text('methods = ["lora"]\n')
    (place / "images").symlink_to(home / "images")
    records.Fake().write(place / "store")
    with chdir(place), pytest.MonkeyPatch.context() as patch:
        code, error = ends(words, patch)
    assert code in {None, 0, 1, 2}, (words, error)
    assert "Traceback" not in error
    if code == 2:
        (line,) = error.splitlines()
        assert line.startswith("peftbench: ")
        assert line[-1] in ".?`", line
