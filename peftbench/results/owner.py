"""Which process runs a job: a file in the job's folder, rewritten every BEAT seconds as long as the job runs.

The lock of a job is the first guard against two processes that run it; some network file systems keep locks for each
machine alone. There the age of this file shows that a process of another machine is alive. Ages are differences of two
times of modification in the same folder, which the file server sets, so the clocks of the machines may differ.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from peftbench.storage import files

FILE = "owner.json"
BEAT = 15.0  # seconds
STALE = 90.0  # seconds without a beat, after which a process of another machine counts as dead


@dataclass(frozen=True)
class Owner:
    """A process that runs a job, and how far it is."""

    host: str
    pid: int
    slurm: str = ""  # id of the Slurm task, such as 12_3
    step: int = 0
    rate: float = 0.0  # images per second in training
    best: float | None = None  # validation macro F1, 0..1

    def __str__(self) -> str:
        """Return where it runs: `node3, process 4711, Slurm 12_3`."""
        return f"{self.host}, process {self.pid}" + (f", Slurm {self.slurm}" if self.slurm else "")


def slurm_task(environment: Mapping[str, str]) -> str:
    """Return the id of the Slurm task that a process with this environment belongs to, such as 12_3; else empty."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")


def this_process() -> Owner:
    """Return this process as an owner."""
    return Owner(platform.node(), os.getpid(), slurm_task(os.environ))


def read(folder: Path) -> Owner | None:
    """Return the owner that a job's folder names, who may be dead; None without one."""
    try:
        values: Any = json.loads((folder / FILE).read_bytes())
        return Owner(**values)
    except (OSError, ValueError, TypeError):
        return None


def remove(folder: Path) -> None:
    """Remove the owner's file from a job's folder, where it exists and may be removed."""
    with suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)


def age(folder: Path) -> float | None:
    """Return the seconds since the owner's last beat by the clock of the file server; None if that is unknown."""
    probe = folder / f".{uuid.uuid4().hex}.draft"
    try:
        probe.touch(mode=files.PRIVATE_FILE)
        return max(0.0, probe.stat().st_mtime - (folder / FILE).stat().st_mtime)
    except OSError:
        return None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def runs_elsewhere(folder: Path) -> bool:
    """Return whether a process of another machine is alive and runs the job of this folder, whose lock is free here.

    Not if the owner is the Slurm task of this process: Slurm has ended it before it started this one.
    """
    owner, me = read(folder), this_process()
    if owner is None or owner.host == me.host or (owner.slurm and owner.slurm == me.slurm):
        return False
    return (since := age(folder)) is not None and since < STALE


@dataclass
class Heartbeat:
    """Writes the owner's file while its block runs, and removes it at the end; a full disk does not end the job."""

    folder: Path
    owner: Owner = field(default_factory=this_process)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        remove(self.folder)

    def progress(self, step: int, rate: float, best: float | None) -> None:
        """Show this progress with the next beat."""
        self.owner = replace(self.owner, step=step, rate=rate, best=best)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self._write()

    def _write(self) -> None:
        with suppress(OSError):
            files.write_json(self.folder / FILE, asdict(self.owner), private=True)
