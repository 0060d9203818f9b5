"""What a store shows about one setting: the rows, tested comparisons and analyses from which claims are decided."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from peftbench.core.constants import PAPER_DATASETS
from peftbench.core.recipe import CPU_STANDARD, RECIPES
from peftbench.core.record import WHOLE
from peftbench.results.advice import next_level, store_option
from peftbench.results.comparison import Compared, Pair, compared
from peftbench.results.formatting import format_probability
from peftbench.results.paper import row_of
from peftbench.results.redaction import public_names
from peftbench.results.summary import Block, MethodRow
from peftbench.statistics.power import needed
from peftbench.statistics.tiers import UNDECIDED

Verdict: TypeAlias = Literal["holds", "fails", "undecided"]
FEW_SEEDS = 3  # that a command asks for at least


@dataclass(frozen=True)
class Conclusion:
    """Whether a claim holds, the numbers it rests on, and the command that would decide it; "" if it is decided."""

    verdict: Verdict
    numbers: tuple[str, ...]
    command: str = ""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The jobs of one setting on the data sets that count: the paper's, else other real ones, else synthetic ones."""

    block: Block
    store: Path
    datasets: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        real = [name for name in self.block.datasets if not self.block.synthetic(name)]
        paper = [name for name in real if name in PAPER_DATASETS]
        object.__setattr__(self, "datasets", tuple(paper or real or self.block.datasets))

    @property
    def synthetic(self) -> bool:
        """Whether all images are drawn."""
        return all(map(self.block.synthetic, self.datasets))

    @property
    def seeds(self) -> list[int]:
        """The seeds of all jobs."""
        return sorted({result.record.seed for result in self.block.results})

    @cached_property
    def found(self) -> Compared:
        """The comparison of all methods, averaged over the data sets."""
        return compared(self.block, self.datasets)

    def row(self, label: str) -> MethodRow | None:
        """Return the whole row of a method at its own size, SH-PEFT at 1%; None unless every data set has it."""
        row = row_of(self.block, label)
        return row if row in self.found.rows else None

    def rows(self) -> list[MethodRow]:
        """Return the whole rows on whole data sets with pretrained weights."""
        plain = [row for row in self.found.rows if not row.records[0].backbone.random]
        return [row for row in plain if row.records[0].data.variant == WHOLE]

    def pairs(self, label: str, others: Iterable[str]) -> tuple[Pair, ...]:
        """Return the comparisons of a method with others, adjusted for their number; missing rows are left out."""
        one, rivals = self.row(label), [self.row(other) for other in others]
        return self.found.test([(one, rival) for rival in rivals if one and rival])

    # --- commands ---

    def command(self, methods: Sequence[str], *, ratios: str = "", match: str = "", seeds: int = 0) -> str:
        """Return the command that runs methods on these data sets as the jobs of this setting were run."""
        setting, count = self.block.setting, max(seeds, FEW_SEEDS)
        wanted = self.seeds if len(self.seeds) >= count else range(count)
        words = ["peftbench", "run", "--methods", ",".join(methods), "--datasets", ",".join(self.datasets)]
        words += ["--ratios", ratios] if ratios else []
        words += ["--match", match] if match else []
        words += ["--backbone", setting.backbone, "--recipe", setting.recipe, *self._changed()]
        words += ["--seeds", ",".join(map(str, wanted))]
        return shlex.join([*words, *store_option(self.store)])

    def _changed(self) -> list[str]:
        """Return the flags of trials, and of steps and batch where they are not the recipe's."""
        values, recipe = json.loads(self.block.setting.fields), RECIPES.get(self.block.setting.recipe)
        trials = [len(result.record.tuning.grid) for result in self.block.results if result.record.tuning]
        found = ["--tune", str(max(trials))] if trials and max(trials) > 1 else []
        for name in ("steps", "batch"):
            usual = {getattr(recipe, name, None), CPU_STANDARD[name]}
            found += [f"--{name}", str(values[name])] if values.get(name) not in {*usual, None} else []
        return found

    # --- analyses ---

    def analysis(self, name: str) -> list[dict[str, str]]:
        """Return the rows of a CSV file of `peftbench analyze` for this setting and these data sets."""
        file, setting = self.store / "analysis" / f"{name}.csv", self.block.setting
        if not file.is_file():
            return []
        public = public_names(self.block.datasets)
        here = {public[name] for name in self.datasets} | {self.average_title}
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        own = {"backbone": setting.backbone, "image_size": str(setting.size), "recipe": setting.recipe}
        same = [row for row in rows if all(row.get(key) == value for key, value in own.items())]
        plain = [row for row in same if row.get("method") == "full"]  # before variants such as full[drop_path=0.1]
        same = plain or same
        return [row for row in same if row.get("dataset") in here and row.get("other", row["dataset"]) in here]

    @property
    def average_title(self) -> str:
        """The title of the average over these data sets in tables; the data set where there is one."""
        titles = {names: title for title, names in self.block.averages().items()}
        return titles.get(self.datasets, self.datasets[0])


# --- verdicts --------------------------------------------------------------------------------------------------------


def superior(pairs: Sequence[Pair], expected: int) -> Verdict:
    """Return whether the first method of all pairs is shown to be better; it fails where it is shown to be worse.

    From one seed nothing is known about the methods, only about the models that were trained.
    """
    known = [pair for pair in pairs if pair.found.seeds > 1]
    if any(pair.verdict == "worse" for pair in known):
        return "fails"
    better = sum(pair.verdict == "better" for pair in known)
    return "holds" if better == expected > 0 else "undecided"


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict on a claim of several parts: it fails with one of them and holds with all."""
    found = set(verdicts)
    return "fails" if "fails" in found else "holds" if found == {"holds"} else "undecided"


def number(pair: Pair) -> str:
    """Return a tested difference in points, as a phrase."""
    low, high = (f"{100 * limit:+.1f}" for limit in pair.found.interval)
    difference = f"{100 * pair.found.difference:+.1f}"
    bounds = "" if math.isnan(pair.found.interval[0]) else f" [{low}, {high}]"
    seeds = ", one seed: no verdict on the methods" if pair.found.seeds == 1 else ""
    return f"{pair.method} - {pair.other}: {difference}{bounds}, p {format_probability(pair.p)}, {pair.verdict}{seeds}"


def seeds_to_decide(pairs: Iterable[Pair]) -> int:
    """Return the most seeds that a pair without a verdict needs; 0 where no number of seeds is known to be enough."""
    undecided = [pair for pair in pairs if pair.verdict == UNDECIDED]
    found = [needed(pair.found, next_level(undecided)).seeds or 0 for pair in undecided]
    return max(found) if found and all(found) else 0


def search_of(row: MethodRow) -> Mapping[str, int]:
    """Return how many trials and optimizers the jobs of a row were tuned with."""
    tunings = [record.tuning for record in row.records]
    return {
        "trials": max((len(one.grid) for one in tunings if one), default=0),
        "optimizers": max((len(set(one.optimizers)) for one in tunings if one), default=0),
    }
