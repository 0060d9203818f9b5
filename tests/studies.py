"""Small studies for the tests of the core: drawn images, a short recipe, jobs, the command line in its own process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from peftbench.cli.app import main
from peftbench.core.record import Record
from peftbench.core.spec import Job, Places, Study
from peftbench.models import sparse_ways
from peftbench.results.store import Store
from peftbench.study import resolve

SIDE = 64  # pixels, what `mini` takes as it is
CLASSES = ("dots", "rows", "stripes")
SHORT = ("--steps", "8", "--batch", "4", "--evaluations", "4", "--backbone", "mini", "--no-baselines", "--jobs", "1")


def draw(root: Path, images: int = 20, seed: int = 0) -> Path:
    """A folder of three class folders, `images` noisy pictures of SIDE px in each."""
    rng = np.random.default_rng(seed)
    waves = 127 + 60 * np.sin(np.arange(SIDE) / 2)
    patterns = {"dots": np.minimum(waves, waves[:, None]), "rows": waves[:, None], "stripes": waves[None]}
    for name, pattern in patterns.items():
        (root / name).mkdir(parents=True)
        for i in range(images):
            noisy = pattern + rng.normal(0, 70, (SIDE, SIDE))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root


def home(factory: pytest.TempPathFactory, images: int = 10) -> Path:
    """Return a new folder with drawn images in `images`."""
    folder = factory.mktemp("home")
    draw(folder / "images", images)
    return folder


def places(home: Path) -> Places:
    """Store and caches within `home`, no data, on the CPU."""
    return Places(store=home / "runs", data=home / "data", cache=home / "cache")


def study(base: Study | None = None, /, **changes: Any) -> Study:
    """`base` with other values, methods and recipe as text."""
    return replace(base or Study(), **changes)


def small(images: Path, **changes: Any) -> Study:
    """A study of the drawn images that takes a second a method."""
    asked = study(
        methods=("linear",),
        datasets=(f"folder:{images}",),
        recipe="quick",
        backbone="mini",
        steps=8,
        batch=4,
        evaluations=4,
        precision="fp32",
        seeds=(0,),
        baselines=False,
    )
    return replace(asked, **changes)


def jobs(asked: Study, where: Places) -> list[Job]:
    """Its jobs, rates untuned."""
    return [draft.job for draft in resolve.resolve(asked, where).drafts]


# --- the command line ------------------------------------------------------------------------------------------------


def call(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """`peftbench ARGUMENTS` in this process; the exit code."""
    monkeypatch.setattr(sys, "argv", ["peftbench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


SLOW = (  # to import, some of it only when first needed
    "peftbench.cli.run",
    "peftbench.execution.local",
    "peftbench.study.resolve",
    "peftbench.backbones._preset",
    "peftbench.reports.figure",
    "scipy.stats",
    "pandas",
    "peft",
    "torch._dynamo",
)


def warm_context() -> ForkServerContext:
    """Return a context whose processes have imported what is slow: each starts within milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*SLOW, "tests.studies"])
    return context


def start(arguments: Sequence[str], home: Path, die_at: tuple[str, int] | None = None) -> ForkServerProcess:
    """`peftbench ARGUMENTS` in a process of its own, working in `home`, what it prints in `home/out.txt`.

    It is forked from a server that has imported what is slow, so that many such processes can be killed. With `die_at`
    (NAME, n), it kills itself just before the n-th time that a draft would be renamed to a file of that name.
    """
    process = warm_context().Process(target=_program, args=(list(arguments), home, die_at))
    process.start()
    return process


def _program(arguments: list[str], home: Path, die_at: tuple[str, int] | None) -> None:
    os.chdir(home)
    out = os.open(home / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ["PEFTBENCH_CACHE"] = str(home / "cache")
    sparse_ways.FASTER = 0  # no way wins by its time, which may differ between two homes, and with it the last bits
    if die_at:
        _die(*die_at)
    sys.argv = ["peftbench", *arguments]
    main()


def _die(name: str, times: int) -> None:
    """Arrange for SIGKILL in place of a rename."""
    rename, left = Path.replace, [times]

    def replaced(draft: Path, target: Path) -> Path:
        left[0] -= target.name == name
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(draft, target)

    Path.replace = replaced  # type: ignore[assignment,method-assign]


# --- what a job left -------------------------------------------------------------------------------------------------

PASSING = ("costs", "environment", "seal")  # of a record: the machine and the hour, not the result


def left_by(folder: Path) -> dict[str, Any]:
    """Everything in a job's folder that must be the same however often the job was interrupted."""
    record = json.loads((folder / "record.json").read_text())
    files = ("curve.csv", "delta.safetensors", "private.json")
    with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
        arrays: dict[str, NDArray[Any]] = dict(stored)
    return {
        **{name: (folder / name).read_bytes() for name in files if (folder / name).exists()},
        **{f"record/{key}": value for key, value in record.items() if key not in PASSING},
        **{f"predictions/{name}": (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()},
    }


def assert_equal(store: Path, other: Path) -> None:
    """Require the same jobs with the same bits."""
    ids = Store(other).ids()
    assert Store(store).ids() == ids
    for name in ids:
        own, theirs = (left_by(root / "jobs" / name) for root in (store, other))
        assert {key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key)} == set()


def records(store: Path) -> dict[str, Record]:
    """By job id."""
    files = sorted((store / "jobs").glob("*/record.json"))
    return {file.parent.name: Record.model_validate_json(file.read_bytes()) for file in files}
