"""One row a job with all metrics under each rule, at full precision: for whoever wants to compute something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peftbench.core.contract import Result
from peftbench.results.frame import frame


@dataclass(frozen=True)
class Csv:
    """`results.csv`: final jobs, failed ones with their reason."""

    suffix: ClassVar[str] = ".csv"

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write into `out`; an undefined value is an empty field."""
        file = out / "results.csv"
        frame(result for result in results if result.record.role == "final").to_csv(file, index=False)
        return [file]


plugin = Csv()
