"""MLflow: one run for each job, on the server that MLFLOW_TRACKING_URI names or in STORE/mlflow.db."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from peftbench.core.contract import TrackedJob
from peftbench.trackers._extra import refuse_without

EXPERIMENT = "peftbench"  # unless MLFLOW_EXPERIMENT_NAME names another
PARAMETERS, METRICS = 100, 1000  # that MLflow accepts at once
SETTINGS = {  # unless the user has set them
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing leaves but what is tracked
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default a server that is away holds up the study for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
}


class MLflow:
    """Log parameters, curves, scores and costs; no files."""

    def __init__(self, store: Path) -> None:
        refuse_without("mlflow", "mlflow")
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self.store = store.absolute()
        self.server = os.environ.get("MLFLOW_TRACKING_URI", "")
        self.experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        self.client: Any = None

    def track(self, job: TrackedJob) -> None:
        """Log one job as a run that is tagged with its id."""
        entities = import_module("mlflow.entities")
        client = self._connected()
        run = client.create_run(self._experiment_id(), tags={"peftbench.job": job.id}, run_name=job.name)
        now = run.info.start_time
        parameters = [entities.Param(name, str(value)) for name, value in job.parameters.items()]
        numbers = [entities.Metric(name, value, now, 0) for name, value in job.numbers.items()]
        points = [
            entities.Metric(f"curve/{name}", value, now, int(row["step"]))
            for row in job.curve
            for name, value in row.items()
            if name != "step"
        ]
        for some in _pieces(parameters, PARAMETERS):
            client.log_batch(run.info.run_id, params=some)
        for some in _pieces(numbers + points, METRICS):
            client.log_batch(run.info.run_id, metrics=some)
        client.set_terminated(run.info.run_id)

    def close(self) -> None:
        """Do nothing: every run is complete."""

    def _connected(self) -> Any:  # noqa: ANN401 - of a package that may be missing
        """Return the client, made for the first job."""
        if self.client is None:
            for name in ("alembic", "mlflow"):
                logging.getLogger(name).setLevel(logging.WARNING)  # the steps of making a database
            where = self.server or f"sqlite:///{self.store / 'mlflow.db'}"
            self.client = import_module("mlflow.tracking").MlflowClient(tracking_uri=where)
        return self.client

    def _experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        place = None if self.server else (self.store / "mlflow").as_uri()
        return str(self.client.create_experiment(self.experiment, artifact_location=place))


def _pieces(items: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


plugin = MLflow
