"""Short functions and short files, as CONTRIBUTING.md states."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "peftbench").rglob("*.py"))


def functions() -> dict[str, int]:
    """Lines of every function of the package, its docstring not counted."""
    found = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"] = length(node)
    return found


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    docstring = ast.get_docstring(node, clean=False) or ""
    return (node.end_lineno or node.lineno) - node.lineno + 1 - len(docstring.splitlines())


def test_half_of_all_functions_have_at_most_8_lines() -> None:
    assert statistics.median(functions().values()) <= 8


def test_nine_of_ten_functions_have_at_most_25_lines() -> None:
    lengths = sorted(functions().values())
    assert lengths[int(0.9 * len(lengths))] <= 25


def test_no_function_has_more_than_50_lines() -> None:
    assert {name: lines for name, lines in functions().items() if lines > 50} == {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_has_more_than_500_lines(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 500
