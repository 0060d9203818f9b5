"""Compare parameter-efficient fine-tuning methods for vision transformers on medical images.

import peftbench
peftbench.run(methods=["shpeft", "lora"], datasets="all")
table = peftbench.load("runs")  # a pandas DataFrame, one row a job
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__version__ = version("peftbench")
__all__ = ["__version__", "load", "run"]


def run(
    store: str | Path = "runs",
    *,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    jobs: int = 0,
    **asked: Any,  # noqa: ANN401 - the fields of a Study
) -> int:
    """`peftbench run` from Python; `asked` takes the long options with underscores.

    Returns 0, or 1 when some jobs failed.
    A script must call it under `if __name__ == "__main__":`, because jobs run in processes of their own.
    """
    from pathlib import Path

    from peftbench.cli.run import run_study
    from peftbench.core import fields, spec, syntax
    from peftbench.study import defaults

    places = defaults.places(
        Path(store), Path(data) if data else None, None, Path(weights) if weights else None, device
    )
    values = {k: syntax.texts(v) if k in spec.SEVERAL and isinstance(v, str) else v for k, v in asked.items()}
    return run_study(fields.build(spec.Study, values, "peftbench.run"), places, jobs, skip_broken=False)


def load(store: str | Path = "runs") -> pd.DataFrame:
    """Every finished or failed job of a store: one row a job, the metrics of each selection rule as columns."""
    from pathlib import Path

    from peftbench.results.frame import frame
    from peftbench.results.store import Store

    return frame(result for result in Store(Path(store)).results() if result.record.role == "final")
