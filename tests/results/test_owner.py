"""Whether the process that runs a job is alive, by the times of modification alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from peftbench.results import owner


def test_a_silent_owner_is_dead_whatever_the_clocks_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "this_process", lambda: owner.Owner("here", 2))
    with owner.Heartbeat(tmp_path, owner.Owner("elsewhere", 1)):
        monkeypatch.setattr(time, "time", lambda: 0.0)  # a clock that is decades late
        assert owner.runs_elsewhere(tmp_path)
        silent = (tmp_path / owner.FILE).stat().st_mtime - owner.STALE - 1
        os.utime(tmp_path / owner.FILE, (silent, silent))
        assert not owner.runs_elsewhere(tmp_path)
