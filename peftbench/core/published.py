"""The scores that the SH-PEFT paper prints (Liu et al., MICCAI 2024): every cell of its tables 1 to 5.

They lie in `reports/paper/published.csv`, in an installed wheel in `peftbench/_data/paper`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from peftbench.core.catalogue_files import data_file
from peftbench.errors import CatalogueError

AVERAGE = "average"  # in the place of a data set: of the paper's six


@dataclass(frozen=True)
class PublishedScore:
    """One cell of a table."""

    table: int
    label: str  # of the row, as printed
    venue: str
    type: str  # S selective, A additive, P prompts; empty for a model that was made for one task
    method: str  # label of the method here, such as shpeft[ta=none]; empty if it is none of them
    dataset: str  # name here, or AVERAGE
    metric: str
    value: float | None  # in %; None where a dash is printed


@lru_cache
def published_scores() -> tuple[PublishedScore, ...]:
    """Return all cells in the order of the paper. Raises CatalogueError."""
    file = data_file("reports/paper/published.csv", "paper/published.csv")
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return tuple(_score(row) for row in csv.DictReader(lines))
    except OSError as error:
        raise CatalogueError(f"Cannot read {file}: {error.strerror}; install peftbench again.") from None


def _score(row: Mapping[str, str]) -> PublishedScore:
    texts = {name: row[name] for name in ("label", "venue", "type", "method", "dataset", "metric")}
    return PublishedScore(table=int(row["table"]), value=float(row["value"]) if row["value"] else None, **texts)


def published_methods() -> tuple[str, ...]:
    """Return the methods of the paper's main table, in its order."""
    return tuple(dict.fromkeys(one.method for one in published_scores() if one.table == 1))


def main_scores(method: str) -> dict[str, float]:
    """Return a method's macro F1 in % by data set with their printed average; empty for a method not in the paper."""
    return {
        one.dataset: one.value
        for one in published_scores()
        if one.table == 1 and one.method == method and one.value is not None
    }
