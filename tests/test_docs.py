"""The documentation agrees with the program: commands parse, links lead somewhere, numbers are those of the report.

No test here imports torch or MkDocs; `nox -s docs` builds the pages and checks anchors.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from peftbench import __version__
from peftbench.cli.app import app
from peftbench.core import catalogue_files
from peftbench.core.recipe import RECIPES
from peftbench.core.registry import registry
from peftbench.core.syntax import parse, texts
from tools import docs_pages

ROOT = Path(__file__).parents[1]
FILES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXAMPLES = {  # names that the reader defines while reading
    "methods": {"paper", "all", "query_bitfit", "norm_scales"},
    "datasets": {"paper", "all", "phantoms", "medmnist", "every", "clinic"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_page_includes_files_in_the_notation_of_mkdocs(file: Path) -> None:
    assert "--8 <" not in file.read_text("utf-8")


def shown(text: str) -> Iterator[str]:
    """Lines of code in a Markdown text, fenced or indented, and code within sentences."""
    for _, language, block in FENCE.findall(text):
        if language == "console":
            yield from (line.strip().removeprefix("$ ") for line in block.splitlines())
    rest = FENCE.sub("", text)
    yield from (line.strip() for line in rest.splitlines() if line.startswith("    "))
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest))


def commands() -> list[str]:
    """Every peftbench command in README and docs, but for those that only print help."""
    pieces = (piece for file in FILES for line in shown(file.read_text("utf-8")) for piece in line.split(" && "))
    return sorted({piece for piece in pieces if piece.startswith("peftbench ") and not piece.endswith("--help")})


def parsed(command: str) -> Mapping[str, Any]:
    """What the program reads from a command; raises an exception of click for one that it does not accept."""
    found: Any = get_command(app)
    words = shlex.split(command)[1:]
    while hasattr(found, "commands"):
        assert words, f"{command}: incomplete"
        assert words[0] in found.commands, f"{command}: no verb {words[0]!r}"
        found, words = found.commands[words[0]], words[1:]
    values: Mapping[str, Any] = found.make_context(command, words).params
    return values


def test_the_documentation_shows_commands() -> None:
    assert {"peftbench run", "peftbench data check folder:my_images", "peftbench report runs"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_a_command_that_is_shown_parses_and_names_what_exists(command: str) -> None:
    values = parsed(command)
    for kind in ("methods", "datasets"):
        names = [parse(text).name for written in values.get(kind) or () for text in texts(written)]
        assert set(names) <= {*registry(kind).names(), *EXAMPLES[kind]}
    if recipe := values.get("recipe"):
        assert parse(recipe).name in RECIPES


def messages() -> set[str]:
    """Every string of the package that is written as it is."""
    nodes = (
        node for file in (ROOT / "peftbench").rglob("*.py") for node in ast.walk(ast.parse(file.read_text("utf-8")))
    )
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_sentences_in_the_tutorials_output_are_those_of_the_program() -> None:
    """A sentence is five words or more without a number; names of files and tables have none."""
    blocks = FENCE.findall((ROOT / "docs" / "tutorial.md").read_text("utf-8"))
    output = "".join(block for _, language, block in blocks if language == "text")
    quoted = re.findall(r"[A-Za-z]+(?:,? [A-Za-z]+){4,}", output)
    known = "\n".join(messages())
    assert len(quoted) > 1
    assert [sentence for sentence in quoted if sentence not in known] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_links_lead_to_files_or_generated_pages(file: Path) -> None:
    text = FENCE.sub("", file.read_text("utf-8"))
    links = {link.partition("#")[0] for link in LINK.findall(text) if "://" not in link} - {""}
    generated = {*docs_pages.pages(), *docs_pages.COPIED} if file.parent.name == "docs" else set[str]()
    assert [link for link in links if link not in generated and not (file.parent / link).exists()] == []


def test_the_page_of_methods_has_a_section_for_each_with_its_options() -> None:
    page = docs_pages.methods_page()
    sections = re.findall(r"^### .* \{ #(\w+) \}$", page, re.MULTILINE)
    assert sorted(sections) == list(catalogue_files.method_names())
    assert {one.name: one.default for one in docs_pages.options_of("dora")} == {"sites": "qkv", "r": "8", "alpha": "8"}
    assert "`linear`" in next(one.kind for one in docs_pages.options_of("shpeft") if one.name == "candidates")


def test_the_page_of_data_sets_has_a_section_for_each() -> None:
    sections = re.findall(r"^## .* \{ #(\w+) \}$", docs_pages.datasets_page(), re.MULTILINE)
    assert sections == list(catalogue_files.dataset_names())


def test_the_page_of_commands_has_a_section_for_each_verb() -> None:
    verbs = set(re.findall(r"^##+ `peftbench (.+)`$", docs_pages.command_page(), re.MULTILINE))
    assert {"run", "plan", "report", "status", "list", "show", "merge", "predict", "check", "data fetch"} <= verbs


def cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table, without marks."""
    plain = re.sub(r"\*\*|</?ins>|\\", "", line).replace("\N{NO-BREAK SPACE}", " ")
    return [cell.strip() for cell in plain.strip().strip("|").split("|")]


def test_the_readme_shows_the_numbers_of_the_report() -> None:
    table = (ROOT / "reports" / "first_look" / "tables.md").read_text("utf-8").split("\n\n")[1].splitlines()[2:]
    expected = [[cell for place, cell in enumerate(cells(line)) if place != 1] for line in table]  # 1: target
    rows = [cells(line) for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("|")]
    assert rows[2:] == expected


def test_the_readme_has_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert {"    pip install . && peftbench run", "    pip install 'nox[uv]' && nox"} <= set(lines)


def test_the_citation_names_the_version() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\n## {__version__} " in (ROOT / "CHANGELOG.md").read_text("utf-8")
