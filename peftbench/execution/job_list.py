"""The frozen list of a study: everything that a task of a cluster needs to run its share of the jobs.

The list is written once, with a digest, and read by every task. A task has a number within its phase and owns the jobs
under that number: no two tasks of a list own the same one, so nothing depends on locks between machines.

    trials      trials that depend on no score
    searches    the other trials: a task continues its searches, one round after the other, to their end
    resolve     one task, which writes study.json with the jobs at the rates that were chosen
    finals      the final jobs, at the rates that follow from the trials in the store
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from peftbench.core.contract import DatasetCard
from peftbench.core.spec import Job, Places
from peftbench.errors import JobError
from peftbench.execution.bundles import bundled, forecasts
from peftbench.results.store import Store
from peftbench.storage import checked_json
from peftbench.storage.files import sha256_json
from peftbench.study.resolve import Resolved, write_answers
from peftbench.study.tuning import Draft, Search

PHASES = ("trials", "searches", "resolve", "finals")  # in the order in which they run
Places_ = TypeAdapter(Places)
Draft_ = TypeAdapter(Draft)
About: TypeAlias = tuple[DatasetCard, tuple[str, ...]] | None
Abouts = TypeAdapter(list[About])
RunJobs: TypeAlias = Callable[[Sequence[Job]], None]


@dataclass(frozen=True)
class JobList:
    """A study in tasks."""

    places: Places
    drafts: Sequence[Draft]
    asked: Mapping[str, Any]  # the study, as study.json holds it
    notes: tuple[str, ...]
    tasks: Mapping[str, Sequence[Sequence[Any]]]  # phase -> what each task owns
    seconds: Mapping[str, float | None]  # phase -> the longest task by the forecast, None if it is unknown
    timeout: float | None = None  # seconds after which a job fails

    @property
    def digest(self) -> str:
        """Return eight digits that stand for the jobs and the folders that they use."""
        return sha256_json([[_text(draft) for draft in self.drafts], Places_.dump_python(self.places, mode="json")])[:8]

    # --- what a task owns --------------------------------------------------------------------------------------------

    def run_task(self, phase: str, number: int, run: RunJobs) -> None:
        """Run the jobs that task `number` of a phase owns. Raises JobError where trials were lost."""
        if phase == "resolve":
            self.resolve()
        elif phase == "searches":
            self._search([self._search_of(draft) for draft in self.tasks[phase][number]], run)
        else:
            run(self.jobs(phase, number))
            if phase == "finals":
                for draft in self.tasks[phase][number]:
                    self._final(self.drafts[draft])

    def jobs(self, phase: str, number: int) -> list[Job]:
        """Return the jobs of a task of the phases `trials` or `finals`, without those that wait for lost trials."""
        if phase == "trials":
            pairs = [(self._search_of(draft), trial) for draft, trial in self.tasks[phase][number]]
            return [search.trial_job(search.first()[trial]) for search, trial in pairs]
        store = Store(self.places.store)
        drafts = [self.drafts[draft] for draft in self.tasks[phase][number]]
        return [draft.final(store) for draft in drafts if draft.is_tuned(store)]

    def resolve(self) -> None:
        """Write study.json. Raises JobError where trials were lost."""
        finals = [self._final(draft) for draft in self.drafts]
        write_answers(self.asked, self.notes, self.drafts, finals, Store(self.places.store))

    def _search_of(self, draft: int) -> Search:
        search = self.drafts[draft].search
        assert search is not None, f"draft {draft} is not tuned"  # noqa: S101 - the list names tuned ones only
        return search

    def _search(self, searches: Sequence[Search], run: RunJobs) -> None:
        store = Store(self.places.store)
        while jobs := [search.trial_job(trial) for search in searches for trial in search.replay(store)[1]]:
            run(jobs)

    def _final(self, draft: Draft) -> Job:
        if not draft.is_tuned(Store(self.places.store)):
            where = f"{draft.job.label} on {draft.job.dataset}, seed {draft.job.seed}"
            raise JobError(f"Trials of {where} have not ended. Run the same `peftbench run` again to run them.")
        return draft.final(Store(self.places.store))


# --- making ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundling:
    """How jobs are bundled into tasks."""

    target: float  # seconds of a task
    parallel: int = 0
    most: int = 0  # tasks of a phase; 0: any number

    def __call__(self, items: Sequence[Any], seconds: Sequence[float | None]) -> list[list[Any]]:
        """Return the items in bundles."""
        return bundled(items, seconds, self.target, self.parallel, self.most)


def make(resolved: Resolved, places: Places, bundle: Bundling) -> JobList:
    """Return the list of all jobs of a study that are not done."""
    drafts, store = resolved.drafts, Store(places.store)
    times = forecasts([draft.job for draft in drafts], places)
    searches: list[int] = []  # the first draft of each search that has not ended
    tuned = dict[str, bool]()
    for number, draft in enumerate(drafts):
        if (search := draft.search) and search.job.id not in tuned:
            tuned[search.job.id] = draft.is_tuned(store)
            if not tuned[search.job.id]:
                searches.append(number)
    trials = [(draft, trial) for draft in searches for trial in _waiting(drafts[draft].search, store)]
    later = {draft: left for draft in searches if (left := _rounds_left(drafts[draft].search))}
    finals = [
        number
        for number, draft in enumerate(drafts)
        if not (draft.search is None or tuned[draft.search.job.id]) or not _is_done(draft, store)
    ]
    seconds: dict[str, list[float | None]] = {
        "trials": [times[draft] for draft, _ in trials],
        "searches": [None if (one := times[draft]) is None else one * left for draft, left in later.items()],
        "resolve": [],
        "finals": [times[number] for number in finals],
    }
    items: dict[str, list[Any]] = {"trials": trials, "searches": list(later), "resolve": [], "finals": finals}
    owned = {phase: bundle(items[phase], seconds[phase]) for phase in PHASES}
    longest = {phase: _longest(owned[phase], items[phase], seconds[phase]) for phase in PHASES}
    if searches:
        owned["resolve"] = [[]]
    return JobList(places, drafts, resolved.study.stored(), resolved.notes, owned, longest)


def _is_done(draft: Draft, store: Store) -> bool:
    """Return whether the final job of a draft whose trials have ended is done."""
    return store.job(draft.final(store).id).state() in {"done", "damaged"}


def _waiting(search: Search | None, store: Store) -> list[int]:
    """Return the numbers of the first round's trials that have no record or failed."""
    ids = [search.trial_job(trial).id for trial in search.first()] if search else []
    return [number for number, name in enumerate(ids) if store.job(name).state() != "done"]


def _rounds_left(search: Search | None) -> int:
    """Return the number of trials that depend on scores."""
    return search.budget - len(search.first()) if search and not search.given else 0


def _longest(tasks: Sequence[Sequence[Any]], items: Sequence[Any], seconds: Sequence[float | None]) -> float | None:
    """Return the seconds of the longest task, None if that is unknown."""
    known = dict(zip(items, seconds, strict=True))
    if None in known.values():
        return None
    return max((sum(known[item] or 0.0 for item in task) for task in tasks), default=0.0)


# --- storing ---------------------------------------------------------------------------------------------------------


def write(file: Path, listed: JobList) -> None:
    """Write a list, readable by its owner only. Raises OSError, and JobError if it would not be read as it is."""
    abouts: dict[str, int] = {}
    found: list[About] = []

    def number(about: About) -> int:
        key = sha256_json(Abouts.dump_python([about], mode="json"))
        if key not in abouts:
            abouts[key] = len(found)
            found.append(about)
        return abouts[key]

    drafts: list[tuple[str, int, int]] = [
        (_text(draft), number(draft.job.about), number(draft.search.job.about) if draft.search else 0)
        for draft in listed.drafts
    ]
    kinds = {(draft.job.label, draft.job.backbone): number for number, draft in enumerate(listed.drafts)}
    for number_, draft in ((one, listed.drafts[one]) for one in kinds.values()):
        if _draft(drafts[number_][0], None, None).job.id != draft.job.id:
            raise JobError(f"The job {draft.job.label} on {draft.job.dataset} cannot be written into a list of jobs.")
    plain = {name: getattr(listed, name) for name in ("asked", "notes", "tasks", "seconds", "timeout")}
    places = Places_.dump_python(listed.places, mode="json")
    whole = {
        "version": version("peftbench"),
        "places": places,
        "drafts": drafts,
        "about": Abouts.dump_python(found, mode="json"),
    }
    checked_json.write(file, whole | plain, file.name)


def read(file: Path) -> JobList:
    """Return the list in a file. Raises JobError for one that is missing, was changed or is of another version."""
    try:
        values = checked_json.read(file, file.name)
    except OSError as error:
        reason = f"({error.strerror}); every node must see the store under the same path"
        raise JobError(f"Cannot read the list of jobs {file} {reason}.") from None
    except ValueError as error:
        raise JobError(f"{error}; submit the study again.") from None
    if (wanted := values.pop("version")) != (here := version("peftbench")):
        raise JobError(f"The list {file} was written by peftbench {wanted}, and this is {here}; install that one.")
    try:
        abouts = Abouts.validate_python(values.pop("about"))
        drafts = _Drafts(values.pop("drafts"), abouts)
        places = Places_.validate_python(values.pop("places"))
    except ValidationError as error:
        raise JobError(f"The list {file} cannot be read ({type(error).__name__}); submit the study again.") from None
    return JobList(places, drafts, **values | {"notes": tuple(values["notes"])})


class _Drafts(Sequence[Draft]):
    """The drafts of a stored list, each of them made when it is needed: a task needs few of thousands."""

    def __init__(self, rows: Sequence[Any], abouts: Sequence[About]) -> None:
        self._rows, self._abouts = rows, abouts

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:  # noqa: ANN401 - as a sequence, which slices, too
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        text, own, of_trials = self._rows[number]
        return _draft(text, self._abouts[own], self._abouts[of_trials])


def _text(draft: Draft) -> str:
    """Return a draft as JSON, without the cards of its data sets, which are long and few."""
    bare = replace(draft, job=replace(draft.job, about=None))
    if draft.search:
        bare = replace(bare, search=replace(draft.search, job=replace(draft.search.job, about=None)))
    return Draft_.dump_json(bare).decode()


def _draft(text: str, about: About, about_trials: About) -> Draft:
    found = Draft_.validate_json(text)
    search = found.search and replace(found.search, job=_job(found.search.job, about_trials))
    return replace(found, job=_job(found.job, about), search=search)


def _job(job: Job, about: About) -> Job:
    """Return a job with its card, and with tuples where JSON has lists."""
    return replace(job, about=about, fields=_tuples(job.fields), defaults=_tuples(job.defaults))


def _tuples(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping):
        return {name: _tuples(one) for name, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def described(listed: JobList) -> list[str]:
    """Return a line for every task: its phase, number and jobs."""
    lines = []
    for phase in PHASES:
        for number, owned in enumerate(listed.tasks[phase]):
            drafts = [listed.drafts[item[0] if phase == "trials" else item].job for item in owned]
            names = [f"{job.label} on {job.dataset}, seed {job.seed}" for job in drafts]
            lines.append(f"{phase} {number}: {'; '.join(names) or 'pick the rates, write study.json'}")
    return lines
