"""Compare parameter-efficient fine-tuning methods for vision transformers on medical images.

import peftbench
peftbench.run(methods=["shpeft", "lora"], datasets="all")
table = peftbench.load("runs")  # a pandas DataFrame, one row a job
pairs = peftbench.compare("runs")  # another, one row per pair of methods
(advice,) = peftbench.recommend("runs", max_share="1%")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - by its full name the run-time type checks of the tests find it

    import peftbench.analysis.claims
    import peftbench.results.recommendation

__version__ = "0.1.0"
__all__ = ["__version__", "claims", "compare", "load", "recommend", "run"]


def run(  # noqa: PLR0913 - one argument for each option that is no field of a study
    store: str | Path = "runs",
    *,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    jobs: int = 0,
    skip_broken: bool = False,
    timeout: float | None = None,
    executor: str | Mapping[str, Any] = "local",
    tracker: str | Sequence[str] = (),
    **asked: Any,  # noqa: ANN401 - the fields of a Study
) -> int:
    """Run a study as `peftbench run` does; keyword arguments are its long options with underscores.

    `executor` is the name of one, or what a table [executor] holds: `{"name": "slurm", "partition": "gpu"}`.
    `tracker` names the trackers that receive finished jobs: `"tensorboard,mlflow"`.

    Returns 0, or 1 when some jobs failed. A script must call it under `if __name__ == "__main__":`, because jobs run in
    processes of their own.
    """
    from peftbench.cli.run import run_study
    from peftbench.core import fields, spec, syntax
    from peftbench.execution.executor import make_executor
    from peftbench.study import defaults

    values = {k: syntax.texts(v) if k in spec.SEVERAL and isinstance(v, str) else v for k, v in asked.items()}
    study = fields.build(spec.Study, values, "peftbench.run")
    table = {"name": executor} if isinstance(executor, str) else executor
    runner = make_executor("", table, {"parallel": jobs or None, "timeout": timeout})
    folders = Path(store), Path(data) if data else None, None, Path(weights) if weights else None
    places = defaults.places(*folders, device, elsewhere=runner.elsewhere, wants_gpu=runner.wants_gpu)
    trackers = syntax.texts(tracker) if isinstance(tracker, str) else tracker
    return run_study(study, places, runner, skip_broken=skip_broken, trackers=tuple(trackers))


def load(store: str | Path = "runs") -> pandas.DataFrame:
    """Return the finished and failed jobs of a store, one row per job, with the metrics of each selection rule."""
    from peftbench.results.frame import frame
    from peftbench.results.store import Store

    return frame(result for result in Store(Path(store)).results() if result.record.role == "final")


def compare(store: str | Path = "runs", metric: str = "macro_f1", against: str = "") -> pandas.DataFrame:
    """Return the differences between the methods of a store: one row per pair on each data set and average.

    Differences, 95% limits and the smallest difference that would be found with 80% power are in units of the metric;
    `p_holm` is adjusted over all pairs of a data set. `against` names one method to compare all others with.
    Raises RequestError for an unknown metric or method, StoreError where there is no store.
    """
    from peftbench.results import comparison
    from peftbench.results.store import Store

    return comparison.frame(comparison.compare(Store(Path(store)).results(), metric, against))


def recommend(
    store: str | Path = "runs",
    *,
    max_share: str | float | None = None,
    max_memory: str | int | None = None,
    max_latency: str | None = None,
    metric: str = "macro_f1",
) -> list[peftbench.results.recommendation.Recommendation]:
    """Return which method a store recommends within limits, for each setting and each group of data sets.

    Limits are written as for `peftbench recommend`: `0.5%` or a number of parameters, `8GiB`, `20ms` per image. Each
    recommendation has `sentence`, `not_beaten`, `methods` with their costs, `remarks` and `commands`. Raises
    RequestError for a limit or metric that cannot be read and for a store without finished jobs, StoreError where there
    is no store.
    """
    from peftbench.results import recommendation
    from peftbench.results.limits import Limits
    from peftbench.results.store import Store

    limits = Limits.read(max_share, max_memory, max_latency)
    return recommendation.recommend(Store(Path(store)).results(), Path(store), limits, metric)


def claims(store: str | Path = "runs") -> list[peftbench.analysis.claims.Decided]:
    """Decide ten claims of the SH-PEFT paper for each setting of a store.

    Each setting has `conclusions`: pairs of a claim and its conclusion, which has `verdict` (holds, fails or
    undecided), `numbers` and `command`. Raises StoreError where there is no store.
    """
    from peftbench.analysis.claims import decide
    from peftbench.results.store import Store

    return decide(Store(Path(store)).results(), Path(store))
