"""`peftbench report`: write tables and figures from the jobs of a store."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from peftbench.cli.console import say, warn
from peftbench.cli.options import STORE, StoreArgument
from peftbench.errors import RequestError, StoreError

if TYPE_CHECKING:
    from peftbench.core.contract import Report, Result

DEFAULT_FORMATS = ["markdown,latex,csv,figure,html"]
SHORT_NAMES: Mapping[str, str] = MappingProxyType({"md": "markdown", "tex": "latex", "png": "figure"})

LONG = 40  # rows of a table
LISTED = 6  # files of one folder and format that are named one by one

FormatOption = Annotated[list[str], typer.Option("--format", help="Some of markdown (md), latex, csv, figure, html.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to write to; default: reports/STORE.")]


AnonymousOption = Annotated[
    bool, typer.Option("--anonymous", help="Number data sets and classes; leave out their names, titles and sources.")
]


Per: TypeAlias = Literal["dataset", "method"]
PerOption = Annotated[
    Per | None, typer.Option("--per", help="Write one report per data set or per method, each into a folder of OUT.")
]


def report(
    store: StoreArgument = STORE,
    formats: FormatOption = DEFAULT_FORMATS,
    out: OutOption = None,
    per: PerOption = None,
    anonymous: AnonymousOption = False,
) -> None:
    """Write tables and figures from finished jobs. Nothing is trained."""
    names = [name.strip() for text in formats for name in text.split(",") if name.strip()]
    write_report(store, names, out or Path("reports") / store.resolve().name, per=per, anonymous=anonymous)


def write_report(
    root: Path, formats: Sequence[str], out: Path, *, per: Per | None = None, anonymous: bool = False
) -> None:
    """Write the formats into the folder `out`, or into one of its folders per data set or method; print their names.

    A job that cannot be read is left out, one with damaged files is shown as damaged; each is named on stderr. Raises
    RequestError, StoreError.
    """
    from peftbench.core.registry import registry
    from peftbench.results.redaction import publish
    from peftbench.results.store import Store, no_finished_job
    from peftbench.results.summary import summarize

    problems: list[str] = []
    results = publish(Store(root).results(problems.append), anonymous=anonymous)
    if not any(result.record.role == "final" for result in results):
        if problems:
            raise StoreError(problems[0])
        raise no_finished_job(root)
    reports = registry("reports")
    writers = {name: reports.get(name) for name in (SHORT_NAMES.get(name, name) for name in formats)}
    if not writers:
        raise RequestError(f"--format names no format; choose from {', '.join(reports.names())}.")
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder for the report.")
    for problem in (*problems, *_damages(results)):
        warn(problem)
    for folder, part in _parts(results, per):
        _write(writers, part, out / folder)
    if not per and (rows := max(len(block.rows) for block in summarize(results))) > LONG:
        say(f"The tables have up to {rows} rows; --per method or --per dataset writes several smaller reports.")


def _parts(results: Sequence[Result], per: Per | None) -> Iterator[tuple[str, Sequence[Result]]]:
    """Yield a folder and its results: all of them, or those of each data set or method that has a final job."""
    from peftbench.results.table import stem

    if per is None:
        yield "", results
        return
    parts: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        parts[result.record.data.name if per == "dataset" else result.record.method.name].append(result)
    taken: Counter[str] = Counter()
    for name, part in sorted(parts.items()):
        if any(one.record.role == "final" for one in part):
            taken[stem(name)] += 1
            yield stem(name) + (f"_{taken[stem(name)]}" if taken[stem(name)] > 1 else ""), part


def _write(writers: Mapping[str, Report], results: Sequence[Result], out: Path) -> None:
    """Write one report in each format and print the paths of its files."""
    from peftbench.core.registry import registry

    out.mkdir(parents=True, exist_ok=True)
    for name, writer in writers.items():
        with registry("reports").calling(name):
            files = [Path(file) for file in writer.write(results, out)]
        for line in _listed(files):
            say(line)


def _listed(files: Sequence[Path]) -> Iterator[str]:
    """Yield the paths of the files; a folder with many of them as one line."""
    folders = Counter(file.parent for file in files)
    yield from (str(file) for file in files if folders[file.parent] <= LISTED)
    yield from (f"{folder}: {count} files" for folder, count in folders.items() if count > LISTED)


def _damages(results: Sequence[Result]) -> Iterator[str]:
    from peftbench.core.contract import AGAIN

    for result in results:
        if result.damage:
            yield f"{result.folder} is shown as damaged: {result.damage}; {AGAIN}"
