"""The checkpoint of a running job: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftbench.results.store import JobFolder
from peftbench.storage import checked_tensors
from peftbench.storage.checked_tensors import DAMAGE
from peftbench.training.loop import Chosen, Progress

OPTIMIZER, PIECES = "optimiser", "parts"  # as checkpoints have called them since version 0.1.0


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint in a job's folder."""

    folder: JobFolder

    @property
    def file(self) -> Path:
        """The path of the checkpoint."""
        return self.folder.checkpoint_file

    def write(self, progress: Progress, learner: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Save everything that the rest of the run depends on."""
        logits = {
            f"{rule}|{part}": torch.from_numpy(a) for rule, c in progress.chosen.items() for part, a in c.logits.items()
        }
        groups = {"learner": learner, OPTIMIZER: optimizer, "kept": progress.kept, "logits": logits}
        tensors = {
            f"{g}|{n}": t.detach().cpu().contiguous().clone() for g, named in groups.items() for n, t in named.items()
        }
        facts = {PIECES if k == "pieces" else k: v for k, v in vars(progress).items() if k not in {"chosen", "kept"}}
        plain = facts | {"job": self.folder.id}
        chosen = {rule: {"step": c.step, "score": c.score} for rule, c in progress.chosen.items()}
        if self.file.is_dir() or self.file.parent.is_file():
            self.clear()
        checked_tensors.write(self.file, tensors, json.dumps(plain | {"chosen": chosen}))

    def read(self) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
        """Return the progress and the tensors of learner and optimizer, or None without an intact checkpoint."""
        try:
            tensors, text = checked_tensors.read(self.file)
            facts = json.loads(text)
            if facts.pop("job") != self.folder.id:
                return None
            progress = _progress(facts, tensors)
        except DAMAGE:
            return None
        return progress, _under(tensors, "learner|"), _under(tensors, f"{OPTIMIZER}|")

    def clear(self) -> None:
        """Remove the checkpoint."""
        shutil.rmtree(self.file.parent, ignore_errors=True)
        with suppress(OSError):
            self.file.parent.unlink()  # a file in place of the folder


def _progress(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Progress:
    chosen = {
        rule: Chosen(c["step"], c["score"], _arrays(_under(tensors, f"logits|{rule}|")))
        for rule, c in facts["chosen"].items()
    }
    plain = {"pieces" if name == PIECES else name: value for name, value in facts.items()}
    return Progress(**{**plain, "chosen": chosen, "kept": _under(tensors, "kept|")})


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {part: t.numpy() for part, t in tensors.items()}
