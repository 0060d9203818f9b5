"""TensorBoard: one folder of event files for each job in STORE/tensorboard, with hyperparameters and curves."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

from peftbench.core.contract import TrackedJob
from peftbench.trackers._extra import refuse_without


class TensorBoard:
    """Write event files that `tensorboard --logdir STORE/tensorboard` shows."""

    def __init__(self, store: Path) -> None:
        refuse_without("tensorboard", "tensorboard")
        self.root = store / "tensorboard"

    def track(self, job: TrackedJob) -> None:
        """Write the files of one job, in place of those of an earlier try."""
        folder = self.root / job.id
        shutil.rmtree(folder, ignore_errors=True)
        with import_module("torch.utils.tensorboard").SummaryWriter(str(folder)) as writer:
            writer.add_text("job", job.name)
            for row in job.curve:
                for name, value in row.items():
                    if name != "step":
                        writer.add_scalar(f"curve/{name}", value, int(row["step"]))
            writer.add_hparams({**job.parameters}, {**job.numbers}, run_name=".")

    def close(self) -> None:
        """Do nothing: the files of each job are complete."""


plugin = TensorBoard
