"""One row per job with all metrics under each selection rule, at full precision, for further analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peftbench.core.contract import Result
from peftbench.results.frame import as_csv, frame
from peftbench.storage.files import write_text


@dataclass(frozen=True)
class Csv:
    """`results.csv`: final jobs, failed ones with their reason; a text that looks like a formula starts with `'`."""

    suffix: ClassVar[str] = ".csv"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write the table into the folder `out` and return its path; an undefined value is an empty field."""
        file = out / "results.csv"
        table = frame(result for result in results if result.record.role == "final")
        write_text(file, as_csv(table))
        return [file]


plugin = Csv()
