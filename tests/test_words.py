"""Plain technical English: words that a reader would stumble over stay out of everything that people read."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BANNED = re.compile(
    r"\b(told|says|said|ours|anew|mend(s|ed|ing)?|whoever|will not do|behind|sitting|in earnest|deaf|vouch(es|ed)?|"
    r"optimis(e|es|ed|er|ing)|normalis(e|es|ed|ing)|colour(s|ed)?|neighbour(s|ing)?|behaviours?|analys(ed|ing)|"
    r"centre[sd]?|labelled)\b",
    re.IGNORECASE,
)
BRITISH = re.compile(
    r"colour|neighbour|behaviour|analys(e|ed|er|ing)(?![a-z])|centre|labelled|normalis|randomis", re.IGNORECASE
)
REASONLESS = re.compile(r"(^#|[- ]) ?(likewise|as above|the same)$")
CODE = sorted([*(ROOT / "peftbench").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), ROOT / "noxfile.py"])
TEXTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "peftbench").rglob("*.jinja"),
        *(file for folder in ("methods", "datasets", "studies") for file in (ROOT / folder).glob("*.toml")),
    ]
)


def sentences(file: Path) -> Iterator[tuple[int, str]]:
    """Docstrings and other strings of more than one word, with their lines; a single word may be a stored key."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def tokens(file: Path, kind: int) -> Iterator[tuple[int, str]]:
    """Comments, or names, with their lines."""
    with tokenize.open(file) as stream:
        yield from ((one.start[0], one.string) for one in tokenize.generate_tokens(stream.readline) if one.type == kind)


def found_in(kind: int, pattern: re.Pattern[str]) -> list[str]:
    """Return the tokens of the code in which a pattern is found, with file and line."""
    return [
        f"{file.relative_to(ROOT)}:{line} {text}"
        for file in CODE
        for line, text in tokens(file, kind)
        if pattern.search(text)
    ]


def banned(text: str) -> list[str]:
    return [match.group() for match in BANNED.finditer(text)]


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_docstring_or_message_or_comment_has_a_banned_word(file: Path) -> None:
    texts = [*sentences(file), *tokens(file, tokenize.COMMENT)]
    assert {line: found for line, text in texts if (found := banned(text))} == {}


def test_names_have_american_spelling() -> None:
    assert found_in(tokenize.NAME, BRITISH) == []


def test_every_comment_states_its_own_reason() -> None:
    assert found_in(tokenize.COMMENT, REASONLESS) == []


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_document_template_or_entry_of_the_catalogue_has_a_banned_word(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert {number: found for number, line in enumerate(lines, 1) if (found := banned(line))} == {}


def test_the_banned_words_are_found() -> None:
    assert banned("r = 0 will not do; the record says so, behind Ours.") == ["will not do", "says", "behind", "Ours"]
    assert banned("a beautiful amendment, aforesaid and hours") == []
    assert REASONLESS.search("# noqa: PLC0415 - likewise")
    assert not REASONLESS.search("# takes as long, likewise slow")
    assert BRITISH.search("_coloured")
    assert not BRITISH.search("analyses")
