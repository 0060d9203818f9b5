"""How long `status`, `report` and `run` take on a store of thousands of finished jobs: made-up records, no training.

The jobs are those of a real study, so that `run` of it finds them all done. Times are CPU seconds of the whole command.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peftbench.benchmarks.gates import Gate
from peftbench.core.constants import SELECTION_RULES
from peftbench.core.fields import build
from peftbench.core.record import BackboneFacts, Choice, Costs, Counts, DataFacts, MethodFacts, Record
from peftbench.core.spec import Job, Places, Study
from peftbench.data.pixel_cache import Data
from peftbench.results.store import Store
from peftbench.statistics import scores
from peftbench.study.resolve import resolve

JOBS = 10_000
DATASETS, IMAGES, SIDE = 10, 60, 32  # data sets of so many images of so many pixels
CLASSES = ("a", "b", "c")
SEEDS, BUDGETS = 10, 5
WARM_UP = "import peftbench.cli.run, peftbench.study.resolve, peftbench.execution.local, statsmodels.stats.multitest"
BOUNDS = {"status": 3.0, "report": 60.0, "run": 10.0}  # seconds


def run(jobs: int = JOBS) -> Iterator[Gate]:
    """Yield the gates of a store with so many jobs."""
    with TemporaryDirectory() as folder:
        home = Path(folder)
        options, places = study_options(home, jobs), Places(home / "store", home / "data", home / "cache")
        made = fill(build(Study, options, "bench"), places)
        subprocess.run([sys.executable, "-c", WARM_UP], check=True, env=_environment(home))  # noqa: S603 - imports only
        for verb, arguments in commands(options, places).items():
            name = f"CPU seconds of `{verb}`, {made:,} finished jobs"
            yield Gate(name, cpu_seconds([verb, *arguments], home), BOUNDS[verb])


def fill(study: Study, places: Places) -> int:
    """Write a made-up record and predictions for each job of a study; return how many."""
    store = Store(places.store)
    store.prepare()
    found = resolve(study, places)
    data = {one.fingerprint: one for one in found.data}
    for draft in found.drafts:
        _finish(store, draft.job, data[draft.job.fingerprint])
    return len(found.drafts)


def study_options(home: Path, jobs: int) -> dict[str, Any]:
    """Return the options of a study of about so many jobs, its images drawn in `home`."""
    methods = max(1, jobs // (DATASETS * SEEDS * BUDGETS))
    datasets = [_draw(home / f"images_{number}", number) for number in range(DATASETS)]
    return {
        "methods": tuple(f"shpeft[lam={1 + number / 100}]" for number in range(methods)),
        "datasets": tuple(f"folder:{folder}" for folder in datasets),
        "ratios": tuple(f"{0.1 * (number + 1):.1f}%" for number in range(BUDGETS)),
        "seeds": tuple(range(SEEDS)),
        "backbone": "mini",
        "recipe": "standard",
        "tune": 0,
        "lr": 0.001,
        "precision": "fp32",
        "baselines": False,
    }


def _draw(folder: Path, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES // len(CLASSES)):
            pixels = draw.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


# --- made-up results -------------------------------------------------------------------------------------------------


def _finish(store: Store, job: Job, data: Data) -> None:
    """Write what a finished job leaves, except its delta."""
    folder, draw = store.job(job.id), np.random.default_rng(int(job.id, 16))
    folder.path.mkdir(mode=0o700)
    folder.write_request(asdict(job) | {"identity": job.identity(), "id": job.id})
    folder.write_curve([{"step": float(step), "train_loss": 1 / step} for step in range(1, 6)])
    labels = data.labels["test"]
    arrays: dict[str, NDArray[Any]] = {"test/labels": labels, "test/groups": np.arange(len(labels))}
    choices: dict[str, Choice] = {}
    for rule in SELECTION_RULES:
        logits = draw.normal(size=(len(labels), len(CLASSES))).astype(np.float32)
        logits[np.arange(len(labels)), labels] += 1
        arrays[f"test/{rule}/logits"] = logits
        table = scores.confusion(logits, labels)
        value: dict[str, float | None] = {
            "macro_f1": scores.macro_f1(table).item(),
            "accuracy": scores.accuracy(table).item(),
        }
        choices[rule] = Choice(step=5, val=value, test=value)
    folder.write_predictions(arrays)
    folder.write_record(_record(job, data, choices))


def _record(job: Job, data: Data, choices: dict[str, Choice]) -> Record:
    cost = Costs(
        seconds=10.0,
        selection_seconds=1.0,
        train_seconds=8.0,
        evaluation_seconds=1.0,
        images_per_second=100.0,
        peak_memory=10**8,
        delta_bytes=10**5,
    )
    return Record(
        id=job.id,
        role="final",
        status="done",
        method=MethodFacts(name=job.method, version=job.version, fields=dict(job.fields), label=job.label),
        data=DataFacts(
            name=job.dataset,
            fingerprint=data.fingerprint,
            split=data.rule,
            sizes=data.sizes,
            groups=data.sizes,
            card=asdict(data.card),
            notes=list(data.notes),
        ),
        backbone=BackboneFacts(
            name=job.backbone,
            digest=job.digest,
            random=False,
            parameters=10**6,
            preprocessing=job.preprocessing.stored(),
        ),
        recipe=job.recipe.stored(),
        seed=job.seed,
        threads=job.threads,
        counts=Counts(trainable=job.target or 1000, head=100),
        choices=choices,
        costs=cost,
    )


# --- commands --------------------------------------------------------------------------------------------------------


def commands(options: Mapping[str, Any], places: Places) -> dict[str, list[str]]:
    """Return the arguments of each verb."""
    asked = [f"--{name}={','.join(map(str, value))}" for name, value in options.items() if isinstance(value, tuple)]
    asked += [f"--{name}={options[name]}" for name in ("backbone", "recipe", "tune", "lr", "precision")]
    folders = [f"--cache={places.cache}", f"--data={places.data}", f"--store={places.store}"]
    return {
        "status": [str(places.store)],
        "report": [str(places.store), f"--out={places.store.parent / 'report'}"],
        "run": [*asked, *folders, "--no-baselines", "--device=cpu", "--jobs=1"],
    }


def cpu_seconds(words: Sequence[str], home: Path) -> float:
    """Run the program and return its CPU seconds. Raises CalledProcessError if it fails."""
    command, before = [sys.executable, "-m", "peftbench", *words], resource.getrusage(resource.RUSAGE_CHILDREN)
    with (home / "output.txt").open("w") as out:
        subprocess.run(command, stdout=out, check=True, cwd=home, env=_environment(home))  # noqa: S603 - ourselves
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _environment(home: Path) -> dict[str, str]:
    """Return the environment of a command that finds the modules compiled, as every start after the first does."""
    others = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return others | {"PYTHONPYCACHEPREFIX": str(home / "compiled")}
