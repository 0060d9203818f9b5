"""The command line answers at once because it imports nothing heavy before a verb needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "torchvision", "timm", "open_clip", "peft", "scipy", "sklearn", "pandas"}
LISTING = {"numpy", "PIL", "rich.console", "humanize", "jinja2"}  # what a listing that is not in a terminal needs not
START = "import sys; from peftbench.cli.app import main; sys.argv = ['peftbench', *sys.argv[1:]]; main()"


def imported(code: str, *arguments: str, folder: Path, ends_with: int = 0) -> set[str]:
    """Modules that a fresh interpreter imports while it runs `code`."""
    command = [sys.executable, "-X", "importtime", "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == ends_with, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_importing_the_command_line_imports_nothing_heavy(tmp_path: Path) -> None:
    assert imported("import peftbench.cli.app", folder=tmp_path) & HEAVY == set()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "methods"], ["list", "datasets"]])
def test_help_and_list_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert imported(START, *arguments, folder=tmp_path) & (HEAVY | LISTING) == set()


MISTAKES = (
    ["run", "--methods", "lorra"],
    ["measure", "--methods", "lorra"],
    ["bench", "--device", "tpu"],
    ["check"],
    ["check", "lorra"],
    ["predict", "abc", "images"],
    ["merge", "abc", "--out", "x"],
)


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistyped_command_is_answered_before_torch_is_imported(arguments: list[str], tmp_path: Path) -> None:
    assert imported(START, *arguments, folder=tmp_path, ends_with=2) & HEAVY == set()
