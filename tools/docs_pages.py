"""Generated pages of the documentation: methods, data sets, the command line, and files of the repository's root.

MkDocs calls `on_files` (see `hooks` in mkdocs.yml). No function here imports torch; only `on_files` needs MkDocs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from peftbench.cli.app import app
from peftbench.core import catalogue, catalogue_files
from peftbench.core.catalogue import DatasetEntry, MethodEntry, Official
from peftbench.core.published import main_scores

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
FAMILIES: Mapping[str, tuple[str, str]] = {
    "baseline": ("Baseline", "What every trained row must beat."),
    "S": ("Selective", "A part of the backbone's own weights trains; nothing is added."),
    "A": ("Additive", "Small modules are added beside the frozen ones."),
    "S+A": ("Selective and additive", "Both at once."),
    "P": ("Prompts", "Trained tokens or keys and values are added to the sequence."),
}
SHARED: Mapping[str, str] = {  # page -> file of the repository's root
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
LINKS: Mapping[str, str] = {  # where a link of these files leads on the site
    "docs/": "",
    "reports/first_look/tables.md": "first_look/page.html",
    "reports/first_look/": "first_look/",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
COPIED: Mapping[str, str] = {  # file of the site -> file of the repository
    "first_look/figure.png": "reports/first_look/figure.png",
    "first_look/page.html": "reports/first_look/page.html",
    "CITATION.cff": "CITATION.cff",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the files of the published study."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - the tests read the pages without MkDocs

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for name, source in COPIED.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def pages() -> dict[str, str]:
    """Return every generated page, as Markdown by its name."""
    generated = {"methods.md": methods_page(), "datasets.md": datasets_page(), "cli.md": command_page()}
    return generated | {page: _moved((ROOT / file).read_text("utf-8")) for page, file in SHARED.items()}


def _moved(text: str) -> str:
    """Rewrite the relative links of a file of the root to the pages of the site."""
    for old, new in LINKS.items():
        text = text.replace(f"]({old}", f"]({new}")
    return text


# --- methods -------------------------------------------------------------------------------------------------------


def methods_page() -> str:
    """Return the page of all methods: a table, and a section each."""
    entries = {name: catalogue.method_entry(name) for name in catalogue_files.method_names()}
    rows = [
        (
            f"[`{name}`](#{name})",
            entry.title,
            FAMILIES[entry.family][0],
            f"`{entry.knob}`" if entry.knob else "–",
            "yes" if entry.merges else "no",
        )
        for name, entry in entries.items()
    ]
    return "\n\n".join([METHODS_INTRO.format(count=len(rows)), table(METHOD_COLUMNS, rows), *_families(entries)]) + "\n"


METHOD_COLUMNS = ("name", "method", "family", "size set by", "merges")
METHODS_INTRO = """# Methods

This page is generated from the catalogue, the files `methods/*.toml` of the repository, which the program itself reads.
There are {count} methods. `peftbench list methods` prints this list, and `peftbench show method NAME` one section, with
the number of trainable weights on `mini` and on CLIP ViT-B/16.

*Size set by* is the option that `--ratios` chooses so that the method comes closest to a budget; a method without one
has a single size. *Merges* means that the trained change folds into the backbone's own weights, so that the tuned
network costs nothing more to run. Options are written in brackets: `lora[r=4,alpha=16]`.

The methods `control_...` are controls for SH-PEFT: masks of the same size, chosen in another way. Many additive
methods are computed by Hugging Face peft. Its other tuners are no methods here because they need a language model, mix
adapters that were trained before, or keep state that a delta cannot hold; `peftbench/methods/_hub.py` has the reason
for each."""


def _families(entries: Mapping[str, MethodEntry]) -> Iterator[str]:
    for family, (title, meaning) in FAMILIES.items():
        yield f"## {title}\n\n{meaning}"
        for name, entry in entries.items():
            if entry.family == family:
                yield _method(name, entry)


def _method(name: str, entry: MethodEntry) -> str:
    """Return the section of one method."""
    paper = f"[{entry.paper}]({entry.url})" if entry.url else entry.paper
    facts = [
        ("Trains", text(entry.trains)),
        ("Formula", f"`{entry.formula}`"),
        ("Paper", paper),
        ("Authors' code", f"<{entry.code}>" if entry.code else "none published" if entry.url else ""),
        ("Size set by", f"`{entry.knob}`" if entry.knob else "one size only"),
        ("Merges", "yes" if entry.merges else "no"),
        ("Computed by", "Hugging Face peft" if _by_peft(name) else ""),
    ]
    pieces = [f"### {entry.title} {{ #{name} }}", f"`{name}`", definitions(facts)]
    if options := options_of(name):
        rows = [(f"`{one.name}`", one.kind, f"`{one.default}`", text(one.meaning)) for one in options]
        pieces += [table(("option", "type", "default", "meaning"), rows)]
    if entry.differs:
        pieces += [
            "**Where this implementation differs from the authors', and choices they leave open**",
            bullets(map(text, entry.differs)),
        ]
    if official := _official(entry.official):
        pieces += ["**The authors' recipe** (`--recipe official`)", official]
    if scores := {where: f"{score:.1f}" for where, score in main_scores(name).items()}:
        pieces += [
            "**Macro F1 in % published by Liu et al., MICCAI 2024**",
            table(tuple(scores), [tuple(scores.values())]),
        ]
    return "\n\n".join(pieces)


def _by_peft(name: str) -> bool:
    """Return whether a method wraps a tuner of Hugging Face peft."""
    tree, _ = _module(name)
    origins = {one.module for one in tree.body if isinstance(one, ast.ImportFrom)}
    return not origins.isdisjoint({"peftbench.methods._hub", "peftbench.models.peft_tuners"})


def _official(official: Official) -> str:
    stated = official.model_dump(exclude_defaults=True)
    notes, fields = stated.pop("notes", ()), stated.pop("fields", {})
    facts = [f"{key.replace('_', ' ')} {_value(value)}" for key, value in stated.items()]
    facts += [f"`{key}={_value(value)}`" for key, value in fields.items()]
    return bullets(map(text, ["; ".join(facts), *notes] if facts else notes))


def _value(value: object) -> str:
    return ", ".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)


# --- options of a method, read from its source ---------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """A field of a method's dataclass, as written in its source."""

    name: str
    kind: str  # Markdown
    default: str  # as it would be written in brackets
    meaning: str  # the comment after it


def options_of(name: str) -> list[Option]:
    """Return the options of a method, those of its base classes first; the source is parsed, not imported."""
    tree, _ = _module(name)
    plugin = [one.value for one in tree.body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "plugin"]
    return list(_options(name, ast.unparse(plugin[0])).values()) if plugin else []


def _options(module: str, kind: str) -> dict[str, Option]:
    tree, lines = _module(module)
    node = next((one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == kind), None)
    if node is None:
        origin = _imported(tree).get(kind, "")
        return _options(origin, kind) if origin else {}
    found: dict[str, Option] = {}
    for base in node.bases:
        found |= _options(module, ast.unparse(base))
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and field.value and "ClassVar" not in ast.unparse(field.annotation):
            name = ast.unparse(field.target)
            comment = lines[(field.end_lineno or 1) - 1][field.end_col_offset or 0 :].partition("#")[2].strip()
            found[name] = Option(name, _kind(module, field.annotation), _default(field.value), comment)
    return found


@lru_cache
def _module(name: str) -> tuple[ast.Module, Sequence[str]]:
    """Return a module of the folder of methods, parsed, and its lines."""
    source = (ROOT / "peftbench" / "methods" / f"{name}.py").read_text("utf-8")
    return ast.parse(source), source.splitlines()


def _imported(tree: ast.Module) -> dict[str, str]:
    """Return the names that a module imports from other methods, and from which."""
    imports = (one for one in tree.body if isinstance(one, ast.ImportFrom) and one.module)
    return {
        alias.name: (one.module or "").rpartition(".")[2]
        for one in imports
        if (one.module or "").startswith("peftbench.methods.")
        for alias in one.names
    }


LIMITED: Mapping[str, str] = {  # the types of core/fields.py
    "AtLeast1": "`int` from 1",
    "NotNegative": "`float` from 0",
    "Positive": "`float` above 0",
    "Fraction": "`float` from 0, below 1",
    "Share": "`float` above 0, up to 1",
}


def _kind(module: str, annotation: ast.expr) -> str:
    """Return a type as Markdown: `Literal` as its values, `tuple[str, ...]` as a list of names."""
    if isinstance(annotation, ast.BinOp):
        return f"{_kind(module, annotation.left)} or {_kind(module, annotation.right)}"
    if not isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation)
        return LIMITED.get(name) or _alias(module, name) or f"`{name.lower()}`"
    inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    kind = ast.unparse(annotation.value)
    if kind == "Literal":
        return ", ".join(f"`{ast.literal_eval(one)}`" for one in inner)
    return "names joined by `+`" if kind == "tuple" else _kind(module, inner[0])  # Annotated


def _alias(module: str, name: str) -> str:
    """Return what a name of a type stands for in a module, if it is defined there."""
    tree, _ = _module(module)
    for one in tree.body:
        if isinstance(one, ast.AnnAssign) and one.value and ast.unparse(one.target) == name:
            return _kind(module, one.value)
    origin = _imported(tree).get(name, "")
    return _alias(origin, name) if origin else ""


def _default(value: ast.expr) -> str:
    """Return a default as it would be written in brackets."""
    try:
        found = ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)
    if isinstance(found, tuple):
        return "+".join(map(str, found))
    return str(found).lower() if found is None or isinstance(found, bool) else str(found)


# --- data sets -----------------------------------------------------------------------------------------------------


def datasets_page() -> str:
    """Return the page of all data sets: a table, and a section each."""
    entries = {name: catalogue.dataset_entry(name) for name in catalogue_files.dataset_names()}
    rows = [
        (
            f"[`{name}`](#{name})",
            text(entry.modality),
            str(len(entry.classes) or "2 to 14"),
            _sizes(entry.sizes),
            text(entry.group_key or "–"),
            text(entry.licence),
        )
        for name, entry in entries.items()
    ]
    columns = ("name", "modality", "classes", "images", "group", "licence")
    overview = f'<div class="wide" markdown>\n\n{table(columns, rows)}\n\n</div>'
    return "\n\n".join([DATASETS_INTRO, overview, *(_dataset(*item) for item in entries.items())]) + "\n"


DATASETS_INTRO = """# Data sets

This page is generated from the catalogue, the files `datasets/*.toml` of the repository. `peftbench list datasets` adds
which of them are on your machine, and `peftbench show dataset NAME` the audit of the files. peftbench ships no images
of patients; the phantoms are synthetic and drawn from a fixed seed. How to use [your own images](data.md) and how to
fetch the published ones is described under *Data*.

*Group* is what must never lie in training and test at once: a patient, a source paper, a cluster of near duplicates."""


def _dataset(name: str, entry: DatasetEntry) -> str:
    """Return the section of one data set."""
    facts = [
        ("Modality", text(entry.modality)),
        ("Classes", text(", ".join(entry.classes))),
        ("Images", _sizes(entry.sizes)),
        ("In the SH-PEFT paper", _sizes(entry.paper)),
        ("Split", text(entry.split)),
        ("Group", text(entry.group_key)),
        ("Licence", text(entry.licence)),
        ("Source", ", ".join(f"<{one}>" if one.startswith("http") else text(one) for one in entry.sources)),
        ("Citation", text(entry.citation)),
        ("How to get it", text(entry.how_to_get)),
        ("Terms to accept", text(entry.download.accept)),
    ]
    pieces = [f"## {entry.title} {{ #{name} }}", f"`{name}`", definitions(facts)]
    if entry.members:
        rows = [
            (
                f"`{name}:{one}`",
                member.title,
                text(member.modality),
                member.task.replace("_", " "),
                str(len(member.classes)),
                _sizes(member.sizes),
            )
            for one, member in entry.members.items()
        ]
        pieces += [table(("name", "title", "modality", "task", "classes", "images"), rows)]
    if entry.layout:
        pieces += ["**Layout of the files**", f"```text\n{entry.layout.strip()}\n```"]
    if entry.dirt:
        pieces += ["**Known faults**", bullets(map(text, entry.dirt))]
    return "\n\n".join(pieces)


def _sizes(sizes: Mapping[catalogue.SizeName, int]) -> str:
    """Return `425 / 118 / 203` for train, val and test, or the total where parts are not published."""
    parts = [f"{sizes[part]:,}" for part in ("train", "val", "test") if part in sizes]
    return "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}".join(parts) or (f"{sizes['total']:,}" if "total" in sizes else "")


# --- command line --------------------------------------------------------------------------------------------------


def command_page() -> str:
    """Return the reference of the command line, by Typer's own generator."""
    command = get_command(app)
    written = get_docs_for_click(obj=command, ctx=Context(command, info_name="peftbench"), name="peftbench")
    return CLI_INTRO + written[written.index("## `peftbench ") :].replace("**Usage**:\n\n", "")


CLI_INTRO = """# Command line

This page is generated from the program. `peftbench --help` and `peftbench VERB --help` print the same.

Options that take several values accept them separated by commas (`--methods lora,shpeft`) or repeated. Errors of a
request are one line and exit code 2; exit code 1 means that some jobs failed, 130 that Ctrl-C stopped the command.
`--debug`, anywhere on the line, adds the traceback. `PEFTBENCH_DATA`, `PEFTBENCH_CACHE` and `PEFTBENCH_CACHE_LIMIT` set
the options `--data`, `--cache` and `--cache-limit` of every verb.

"""


# --- Markdown ------------------------------------------------------------------------------------------------------


def text(words: str) -> str:
    """Return one line of plain text, in which only code between backticks is Markdown."""
    pieces = " ".join(words.split()).split("`")
    escaped = [re.sub(r"([\\*_<>|\[\]])", r"\\\1", one) if i % 2 == 0 else one for i, one in enumerate(pieces)]
    return "`".join(escaped)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def definitions(facts: Iterable[tuple[str, str]]) -> str:
    """Return a list of facts, without those that are empty."""
    return bullets(f"**{name}:** {value}" for name, value in facts if value)


def bullets(items: Iterable[str]) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {item}" for item in items)
