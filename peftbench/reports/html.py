"""One page that opens anywhere: figures and tables in a single file, without scripts or external resources."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from peftbench.core.contract import Result
from peftbench.reports import figure
from peftbench.results.tables import tables
from peftbench.storage.files import write_text

TEMPLATE = "_page.html.jinja"


@dataclass(frozen=True)
class Html:
    """`page.html`: the figures, then every table with its caption."""

    suffix: ClassVar[str] = ".html"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write the page into the folder `out` and return its path."""
        from jinja2 import Environment, FileSystemLoader  # noqa: PLC0415 - `peftbench list` loads every report

        templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
        page = templates.get_template(TEMPLATE).render(tables=tables(results), drawings=_drawings(results))
        file = out / "page.html"
        write_text(file, page)
        return [file]


def _drawings(results: Sequence[Result]) -> list[str]:
    """Return the figures as SVG in base64."""
    with TemporaryDirectory() as folder:
        files = [file for file in figure.plugin.write(results, Path(folder)) if file.suffix == ".svg"]
        return [base64.b64encode(file.read_bytes()).decode() for file in files]


plugin = Html()
