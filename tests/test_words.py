"""Plain technical English: words that a reader would stumble over stay out of everything that people read."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BANNED = re.compile(
    r"\b(told|says|said|ours|anew|mend(s|ed|ing)?|whoever|will not do|behind|sitting|in earnest|deaf|vouch(es|ed)?|"
    r"optimis(e|es|ed|er|ing)|normalis(e|es|ed|ing)|colours?)\b",
    re.IGNORECASE,
)
CODE = sorted((ROOT / "peftbench").rglob("*.py"))
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CATALOGUE = sorted([*(ROOT / "methods").glob("*.toml"), *(ROOT / "datasets").glob("*.toml")])


def sentences(file: Path) -> Iterator[tuple[int, str]]:
    """Docstrings and other strings of more than one word, with their lines."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def banned(text: str) -> list[str]:
    return [match.group() for match in BANNED.finditer(text)]


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_docstring_or_message_has_a_banned_word(file: Path) -> None:
    assert {line: found for line, text in sentences(file) if (found := banned(text))} == {}


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_document_has_a_banned_word(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert {number: found for number, line in enumerate(lines, 1) if (found := banned(line))} == {}


@pytest.mark.parametrize("file", CATALOGUE, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_entry_of_the_catalogue_has_a_banned_word(file: Path) -> None:
    texts = strings(tomllib.loads(file.read_text(encoding="utf-8")))
    assert {text: found for text in texts if (found := banned(text))} == {}


def test_the_banned_words_are_found() -> None:
    assert banned("r = 0 will not do; the record says so, behind Ours.") == ["will not do", "says", "behind", "Ours"]
    assert banned("a beautiful amendment, aforesaid and hours") == []
