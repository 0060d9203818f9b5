"""`peftbench plan`: the jobs of a study with exact counts, before anything is trained."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from peftbench.cli.console import make_table, say, show, show_json
from peftbench.cli.options import (
    STORE,
    CacheOption,
    DataOption,
    JsonOption,
    ScaleOption,
    StudyArgument,
    StudyOptions,
    grouped,
)
from peftbench.cli.weights import download_note
from peftbench.core.constants import RANDOM_WEIGHTS
from peftbench.core.syntax import RANDOM, without_random

if TYPE_CHECKING:
    from peftbench.core.spec import Places, Study

HIDDEN = ("recipe", "memory", "memory is", "seconds")  # fields of a planned job that the table shows in other forms
MINUTE, HOUR = 60, 3600  # seconds
Planned = Mapping[str, Any]  # a job, as `forecast.outline` describes it


@grouped
def plan(
    options: StudyOptions,
    study: StudyArgument = "",
    scale: ScaleOption = "",
    data: DataOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """List the jobs of a study with exact counts. Needs neither weights nor images; nothing is trained."""
    from peftbench.core.spec import find_study, read_study

    found = read_study(find_study(study) if study else None, asdict(options), scale)
    from peftbench.study.defaults import places

    show_plan(found, places(STORE, data, cache), as_json=json)


def show_plan(study: Study, places: Places, *, as_json: bool) -> None:
    """Print the jobs of a study with their counts, memory and expected time."""
    from peftbench.benchmarks import forecast

    jobs = forecast.outline(study, places)
    if as_json:
        show_json(jobs)
        return
    network = str(jobs[0]["backbone"])
    jobs = [_named_random(job, network) for job in jobs]
    same = {name for name in ("steps", "trials", "backbone") if len({job[name] for job in jobs}) == 1}
    hidden = (*HIDDEN, *same, *(() if study.ratios or study.match else ("targets",)))
    rows = _of_all_seeds([_shown(job, hidden) for job in jobs])
    steps = {job["steps"] for job in jobs}
    each = f" of {steps.pop():,} steps" if len(steps) == 1 and None not in steps else ""
    on = f" on {network}" if "backbone" in same else ""
    title = f"{len(jobs)} jobs{each}{on}, recipe {jobs[0]['recipe']}; ids need the files"
    right = {name for name in rows[0] if isinstance(jobs[0].get(name), int) or name in {"memory", "training", "share"}}
    show(
        make_table(
            list(rows[0]), [list(map(_cell, row.values())) for row in rows], right=right, title=title, ruled=True
        )
    )
    for line in _notes(jobs, study):
        say(line)


def _named_random(job: Planned, network: str) -> dict[str, Any]:
    """Return the job with random weights of the study's network in the method's name, as in other tables."""
    if job["backbone"] != f"{network}{RANDOM}":
        return dict(job)
    return {**job, "backbone": network, "method": f"{job['method']}{RANDOM_WEIGHTS}"}


def _shown(job: Planned, hidden: Sequence[str]) -> dict[str, Any]:
    """Return the values of a row: memory with its bound, time with its unit."""
    from peftbench.results.formatting import NONE
    from peftbench.storage.sizes import format_size

    memory = format_size(job["memory"]) if job["memory"] else NONE
    bound = "≤ " if job["memory is"] == "at most" else ""
    others = {name: value for name, value in job.items() if name not in hidden}
    return {
        **others,
        "memory": bound + memory,
        "training": NONE if job["seconds"] is None else duration(job["seconds"]),
    }


def _of_all_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for jobs that differ in their seed only, with all of their seeds."""
    seeds: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        seeds.setdefault(tuple((name, value) for name, value in row.items() if name != "seed"), []).append(row["seed"])
    order = dict.fromkeys(rows[0])
    return [order | dict(key) | {"seed": found} for key, found in seeds.items()]


def _cell(value: object) -> str:
    """Return a value with separated thousands; several values are joined by commas."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_cell, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def _notes(jobs: Sequence[Planned], study: Study) -> list[str]:
    """Return what memory and time include."""
    notes = ["Memory: what a training step holds, without the decoded images; ≤: an upper bound, the data decide."]
    tuned = [job for job in jobs if job["trials"] and job["seed"] == jobs[0]["seed"]]
    if trials := sum(job["trials"] for job in tuned):
        more = "; data sets without a test part of their own need them for every seed" if len(study.seeds) > 1 else ""
        notes.append(f"First come {trials:,} trials of as many steps, which choose the learning rates{more}.")
    known = sum(job["seconds"] or 0.0 for job in jobs) + sum(job["trials"] * (job["seconds"] or 0.0) for job in tuned)
    if download := download_note(str(jobs[0]["backbone"])):
        notes.append(download)
    if known:
        what = "jobs and trials" if trials else "jobs"
        notes.append(f"Training of the {what} with a known duration: about {duration(known)}, one after the other.")
    unknown = list(dict.fromkeys(str(job["method"]) for job in jobs if job["seconds"] is None))
    if unknown:
        names = ", ".join(unknown)
        notes.append(
            f"Duration unknown for {names}: not measured on this machine. Run `{measure_command(jobs, study)}`."
        )
    return notes


def measure_command(jobs: Sequence[Planned], study: Study) -> str:
    """Return the command that measures the unknown durations; random weights take as long as pretrained ones."""
    from peftbench.core.syntax import parse

    labels = {str(job["method"]).removesuffix(RANDOM_WEIGHTS) for job in jobs if job["seconds"] is None}
    unknown = {parse(label).name for label in labels}
    methods = [str(spec) for spec in study.methods if spec.name in unknown] or sorted(unknown)
    words = ["peftbench", "measure", "--methods", ",".join(methods)]
    words += ["--ratios", ",".join(study.ratios)] if study.ratios else []
    words += ["--backbone", f"{without_random(str(jobs[0]['backbone']))}{RANDOM}"]
    words += ["--image-size", str(study.image_size)] if study.image_size else []
    words += ["--precision", study.precision] if study.precision != "auto" else []
    words += [flag for flag, is_set in (("--compile", study.compile), ("--graph", study.graph)) if is_set]
    words += ["--threads", str(study.threads)] if study.threads != 1 else []
    return shlex.join(words)
