"""Show that compared ties stay ties: false-positive rates, coverage and power in simulated studies.

    python tools/calibration.py --studies 2000 --out reports/statistics/calibration.md

Simulated runs are those of `tests/ties.py`: three unbalanced classes, one to four images per patient, difficulties of
images and patients that both methods share, what each method makes of them, and noise of seeds. With one seed the
noise between seeds is left out, because one seed cannot show it.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))

from peftbench.statistics.paired import compare, jackknife
from peftbench.statistics.tiers import ALPHA, holm
from tests.ties import tie

GROUPS, SEEDS = (20, 90, 400), (1, 3, 5)
METHODS = 5  # of the family
SHIFT = 0.21  # of the latent level: about 5 points of macro F1


def pairs(groups: int, seeds: int, studies: int, metric: str, shift: float = 0.0) -> NDArray[np.float64]:
    """Return a row per study: p, low, high, and the difference of the better method minus the other."""
    draw = np.random.default_rng([groups, seeds])
    found = []
    for _ in range(studies):
        first, second = ([jackknife(run, metric) for run in runs] for runs in tie(draw, groups, seeds, shift=shift))
        made = compare(second, first)
        found.append((made.p, *made.interval, made.difference))
    return np.asarray(found)


def families(groups: int, seeds: int, studies: int) -> float:
    """Return how often any pair of five equally good methods is called different after Holm's adjustment."""
    draw = np.random.default_rng([groups, seeds, METHODS])
    wrong = 0
    for _ in range(studies):
        scored = [[jackknife(run, "macro_f1") for run in runs] for runs in tie(draw, groups, seeds, methods=METHODS)]
        p = [compare(one, other).p for one, other in combinations(scored, 2)]
        wrong += min(holm(p)) < ALPHA
    return wrong / studies


def row(groups: int, seeds: int, studies: int) -> dict[str, object]:
    """Return all figures of one size of study."""
    f1, auc = (pairs(groups, seeds, studies, metric) for metric in ("macro_f1", "auc"))
    apart = pairs(groups, seeds, studies, "macro_f1", SHIFT)
    truth = apart[:, 3].mean()
    return {
        "patients": groups,
        "seeds": seeds,
        "ties called different, macro F1": (f1[:, 0] < ALPHA).mean(),
        "AUC": (auc[:, 0] < ALPHA).mean(),
        "any of ten pairs, after Holm": families(groups, seeds, studies // 4),
        "coverage of 95% intervals": ((apart[:, 1] <= truth) & (truth <= apart[:, 2])).mean(),
        "true difference": truth,
        "power": (apart[:, 0] < ALPHA).mean(),
    }


def main() -> None:
    """Run the simulations of every size and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows = []
    for groups in GROUPS:
        for seeds in SEEDS:
            rows.append(row(groups, seeds, asked.studies))
            print(rows[-1], flush=True)
    table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(HEAD.format(studies=asked.studies, error=(0.05 * 0.95 / asked.studies) ** 0.5) + table + "\n")


HEAD = """# How often a tie is called a difference

{studies} simulated studies of each size (a quarter of that for Holm's column), made by `tools/calibration.py`. A rate
of 5% has a binomial error of {error:.3f}. Two methods are compared by `peftbench.statistics.paired` on the same images;
patients and seeds vary. The last three columns are of two methods that are apart. Where one seed was run, the figures
speak of these two trained models: a seed's own variance cannot be seen in it.

"""

if __name__ == "__main__":
    main()
