"""Tables for a paper, with booktabs only, to be included in any document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peftbench.core.contract import Result
from peftbench.results.formatting import NONE, Cell
from peftbench.results.table import Table
from peftbench.results.tables import tables
from peftbench.storage.files import write_text

_MARKS = {"": "{}", "best": r"\textbf{{{}}}"}
_SPECIAL = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "#$%&_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # after \\ a bracket would be taken for a length
        "]": "{]}",
        NONE: "--",
        "±": r"$\pm$",
        "…": r"\ldots{}",
        "·": r"\textperiodcentered{}",
        "\n": " ",
    }
)
_PARAGRAPH = 40  # letters of a cell beyond which its column is set as paragraphs
_WORDS_SHARE = 0.6  # of a line, for all such columns together
_LATIN = 0x24F  # the last letter of Latin Extended-B


@dataclass(frozen=True)
class Latex:
    r"""`tables.tex`: every table, for a document with \usepackage{booktabs}; `standalone.tex`: such a document."""

    suffix: ClassVar[str] = ".tex"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write both files into the folder `out` and return their paths."""
        contents = {
            out / "tables.tex": "\n\n".join(_float(table) for table in tables(results)) + "\n",
            out / "standalone.tex": _DOCUMENT,
        }
        for file, text in contents.items():
            write_text(file, text)
        return list(contents)


_DOCUMENT = r"""\documentclass[a4paper,landscape]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs}
\usepackage[margin=1.5cm]{geometry}
\begin{document}
\input{tables}
\end{document}
"""


def _float(table: Table) -> str:
    letters = "".join(_alignments(table))
    lines = [" & ".join(escaped(column) for column in table.columns) + r" \\", r"\midrule"]
    lines += [" & ".join(_cell(cell) for cell in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}[p]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escaped(table.subject)}. {escaped(table.caption)}}}",
            rf"\label{{tab:{table.name.replace('_', '-')}}}",
            rf"\begin{{tabular}}{{@{{}}{letters}@{{}}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _alignments(table: Table) -> list[str]:
    """Return the alignment of each column; long words are set as paragraphs that share a part of the line."""
    cells = zip(*table.rows, strict=True)
    wide = [max(len(str(cell)) for cell in column) > _PARAGRAPH for column in cells]
    width = f"p{{{_WORDS_SHARE / max(1, sum(wide)):.2f}\\linewidth}}"
    plain = ["l" if table.flush_left(column) else "r" for column in table.columns]
    return [width if long and letter == "l" else letter for letter, long in zip(plain, wide, strict=True)]


def _cell(cell: Cell) -> str:
    text = _MARKS[cell.mark].format(escaped(cell.text))
    return rf"{text} {{\scriptsize {escaped(cell.aside)}}}" if cell.aside else text


def escaped(text: str) -> str:
    """Return text that LaTeX prints literally; a letter that plain LaTeX cannot print becomes a question mark."""
    known = "".join(sign if ord(sign) <= _LATIN or ord(sign) in _SPECIAL else "?" for sign in text)
    return known.translate(_SPECIAL)


plugin = Latex()
