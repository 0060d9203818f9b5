"""The options of the command line: one name for each, so that every verb spells it the same.

`StudyOptions` and `PlaceOptions` are options that several verbs share. A verb takes such an object as one parameter,
and `grouped` shows typer an option for each of its fields.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

import typer

from peftbench.core.constants import DEFAULT_STORE
from peftbench.core.syntax import known_device, texts
from peftbench.errors import RequestError, UnknownNameError

if TYPE_CHECKING:
    from peftbench.core.spec import Places

TextList: TypeAlias = list[str] | None  # separated by commas, or the option repeated

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the results.")]
MethodsOption = Annotated[
    TextList, typer.Option("--methods", help="Such as lora,shpeft or 'lora[r=4],shpeft[lam=0.5]'; paper or all.")
]
DatasetsOption = Annotated[
    TextList,
    typer.Option("--datasets", help="Names, all, paper, medmnist, every, phantoms, folder:PATH or table:FILE.csv."),
]
SplitsOption = Annotated[
    TextList,
    typer.Option("--splits", help="Some of official, grouped, deduplicated: the effect of leaks between parts."),
]
ShareOption = Annotated[TextList, typer.Option("--train-share", help="Shares of the train part, such as 5%,25%,100%.")]
ShotsOption = Annotated[TextList, typer.Option("--shots", help="Training images per class, such as 4,16.")]
RatiosOption = Annotated[
    TextList, typer.Option("--ratios", help="Budgets: shares (0.1%,1%) or counts (100k) of trainable parameters.")
]
MatchOption = Annotated[
    str, typer.Option("--match", help="Such as shpeft@1%: every method with a size, and the controls, at that size.")
]
SeedsOption = Annotated[TextList, typer.Option("--seeds", help="Such as 0,1,2.")]
BackboneOption = Annotated[
    str,
    typer.Option(
        "--backbone",
        help="mini, clip_vit_b16, timm:NAME[depth=8] or open_clip:ARCH/TAG; add @random for random weights.",
    ),
]
WeightsOption = Annotated[Path | None, typer.Option("--weights", help="File of pretrained weights for the backbone.")]
SizeOption = Annotated[int | None, typer.Option("--image-size", help="Pixels; default: the backbone's own.")]
RecipeOption = Annotated[
    str, typer.Option("--recipe", help="quick, standard, paper or official; paper[momentum=0] changes a field of it.")
]
TuneOption = Annotated[
    int | None,
    typer.Option("--tune", help="Trials per method to find optimizer and learning rate on validation; 0: no search."),
]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Training steps; default: the recipe's.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Images per training step; default: the recipe's.")]
EvaluationsOption = Annotated[
    int | None, typer.Option("--evaluations", help="Number of evaluations; default: the recipe's.")
]
RateOption = Annotated[float | None, typer.Option("--lr", help="One learning rate for every method, without a search.")]
FoldsOption = Annotated[
    int | None,
    typer.Option("--folds", help="Cross-validation: every image is tested once, tuning stays inside each fold."),
]
RefitOption = Annotated[
    bool | None, typer.Option("--refit", help="Train on train and val at the rate and step that trials have chosen.")
]
BaselinesOption = Annotated[
    bool | None,
    typer.Option("--baselines/--no-baselines", help="Add majority, knn, linear and linear on random weights."),
]
AugmentationOption = Annotated[
    str, typer.Option("--augmentation", help="Of training images: none, light or medical (depends on the modality).")
]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")]
CompileOption = Annotated[
    bool | None,
    typer.Option("--compile", help="Compile each block with torch.compile for training; rounds differently."),
]
GraphOption = Annotated[
    bool | None,
    typer.Option(
        "--graph", help="Replay each training step as one CUDA graph; GPU only, experimental: not measured yet."
    ),
]
DeterministicOption = Annotated[
    bool | None, typer.Option("--deterministic", help="Use deterministic, slower kernels on a GPU.")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads of a job; part of its identity.")]
DeviceOption = Annotated[str, typer.Option("--device", callback=known_device, help="auto, cpu or cuda.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="PEFTBENCH_DATA", help="Folder that holds the data sets.")
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", envvar="PEFTBENCH_CACHE", help="Folder for decoded images and estimates.")
]
CacheLimitOption = Annotated[
    str,
    typer.Option(
        "--cache-limit",
        envvar="PEFTBENCH_CACHE_LIMIT",
        help="Such as 20G; the least recently used entries are removed.",
    ),
]
ImageColumnOption = Annotated[
    str, typer.Option("--image-column", help="Column of a table:FILE.csv that holds the images' paths.")
]
LabelColumnOption = Annotated[str, typer.Option("--label-column", help="Column of a table that holds the labels.")]
SplitColumnOption = Annotated[str, typer.Option("--split-column", help="Column of a table: train, val or test.")]
GroupColumnOption = Annotated[str, typer.Option("--group-column", help="Column of a table that holds the patients.")]
MetricOption = Annotated[str, typer.Option("--metric", help="A metric of `peftbench list metrics`.")]
SkipBrokenOption = Annotated[bool, typer.Option("--skip-broken", help="Leave out images that cannot be decoded.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]

ExecutorOption = Annotated[
    str,
    typer.Option("--executor", help="Where jobs run: local, slurm or ray; default: as the study has it, or local."),
]
TrackerOption = Annotated[
    TextList,
    typer.Option("--tracker", help="Copy each finished job to tensorboard, mlflow or a plug-in; default: to none."),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "--parallel",
        min=0,
        help="Jobs at the same time; 0: one per core on a CPU, one per GPU on GPUs, no limit on a cluster.",
    ),
]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", min=1.0, help="Seconds after which a job fails; default: no limit.")
]
SlurmOption = Annotated[
    TextList,
    typer.Option("--slurm", help="Long options of sbatch, such as partition=gpu,gres=gpu:1,time=4:00:00."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="With --executor slurm: show scripts and jobs, submit nothing.")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="With --executor ray: of the cluster; auto, or ray://HOST:10001.")
]
GatherOption = Annotated[
    bool,
    typer.Option("--gather", help="With --executor ray: nodes share no folder; images go there, jobs come back."),
]

StoreArgument = Annotated[Path, typer.Argument(help="Folder of the results.")]
StudyArgument = Annotated[
    str, typer.Argument(help="A study.toml, or a name of `peftbench list studies`; options override what it sets.")
]
ScaleOption = Annotated[
    str, typer.Option("--scale", help="Of a study: printed, or small: on the backbone and the data sets that are here.")
]
JobArgument = Annotated[str, typer.Argument(help="The job's id, the first digits of it, or its folder.")]

STORE = DEFAULT_STORE


@dataclass(frozen=True)
class StudyOptions:
    """What a study runs; every field is a field of `core.spec.Study`, and None or "" leaves it open."""

    methods: MethodsOption = None
    datasets: DatasetsOption = None
    splits: SplitsOption = None
    train_share: ShareOption = None
    shots: ShotsOption = None
    ratios: RatiosOption = None
    match: MatchOption = ""
    seeds: SeedsOption = None
    backbone: BackboneOption = ""
    image_size: SizeOption = None
    recipe: RecipeOption = ""
    tune: TuneOption = None
    folds: FoldsOption = None
    refit: RefitOption = None
    steps: StepsOption = None
    batch: BatchOption = None
    evaluations: EvaluationsOption = None
    lr: RateOption = None
    baselines: BaselinesOption = None
    augmentation: AugmentationOption = ""
    precision: PrecisionOption = ""
    compile: CompileOption = None
    graph: GraphOption = None
    deterministic: DeterministicOption = None
    threads: ThreadsOption = None
    image_column: ImageColumnOption = ""
    label_column: LabelColumnOption = ""
    split_column: SplitColumnOption = ""
    group_column: GroupColumnOption = ""


@dataclass(frozen=True)
class ColumnOptions:
    """The names of a table's columns; "" is the usual one."""

    image_column: ImageColumnOption = ""
    label_column: LabelColumnOption = ""
    split_column: SplitColumnOption = ""
    group_column: GroupColumnOption = ""

    def given(self) -> dict[str, str]:
        """Return those that differ from the usual names."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class PlaceOptions:
    """Folders and files of this machine, and the device."""

    weights: WeightsOption = None
    device: DeviceOption = "auto"
    store: StoreOption = STORE
    data: DataOption = None
    cache: CacheOption = None
    cache_limit: CacheLimitOption = "50G"

    def found(self, *, elsewhere: bool = False, wants_gpu: bool = False) -> Places:
        """Return the places, the platform's own folders where none is given.

        `elsewhere`: jobs run on other machines, where there is a GPU if `wants_gpu`, so the device is not looked for.
        """
        from peftbench.study.defaults import places

        folders = self.store, self.data, self.cache, self.weights
        return places(*folders, self.device, self.cache_limit, elsewhere=elsewhere, wants_gpu=wants_gpu)


@dataclass(frozen=True)
class ExecutorOptions:
    """Where jobs run, and the trackers that receive them.

    None or "" leaves an option to the study's table [executor], or else to the executor.
    """

    executor: ExecutorOption = ""
    jobs: JobsOption = None
    timeout: TimeoutOption = None
    slurm: SlurmOption = None
    dry_run: DryRunOption = False
    address: AddressOption = None
    gather: GatherOption = False
    tracker: TrackerOption = None

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names of the trackers."""
        return texts(",".join(self.tracker or ()))

    def given(self) -> dict[str, Any]:
        """Return the options under the names of the executors' fields. Raises RequestError for a faulty --slurm."""
        options = sbatch_options(self.slurm or []) or None
        slurm = {"options": options, "dry_run": self.dry_run or None}
        ray = {"address": self.address, "gather": self.gather or None}
        return {"parallel": self.jobs, "timeout": self.timeout, **slurm, **ray}

    def check(self, table: Mapping[str, Any]) -> None:
        """Raise RequestError for an executor that does not exist, or lacks an option, without importing one."""
        from peftbench.core.registry import registry

        name, known = self.executor or str(table.get("name", "local")), registry("executors").names()
        if name not in known:
            raise UnknownNameError("executor", name, known)
        for tracker in self.trackers:
            if tracker not in (trackers := registry("trackers").names()):
                raise UnknownNameError("tracker", tracker, trackers)
        flags: dict[str, tuple[object, str]] = {"--slurm": (self.slurm, "slurm"), "--dry-run": (self.dry_run, "slurm")}
        flags |= {"--address": (self.address, "ray"), "--gather": (self.gather, "ray")}
        for flag, (value, owner) in flags.items():
            if value and name != owner:
                raise RequestError(f"{flag} needs --executor {owner}, and the executor is {name}.")


def sbatch_options(texts: Sequence[str]) -> dict[str, str | bool]:
    """Return the options in texts such as `partition=a,b,gres=gpu:1,exclusive=true`.

    A piece without = belongs to the value before it. Raises RequestError for one that has none before it.
    """
    found: dict[str, str | bool] = {}
    for text in texts:
        name = ""
        for piece in text.split(","):
            key, equals, value = piece.partition("=")
            if equals and key.strip("- "):
                name = key.strip("- ")
                found[name] = {"true": True, "false": False}.get(value.strip().lower(), value.strip())
            elif name:
                found[name] = f"{found[name]},{piece}"
            else:
                raise RequestError(f"--slurm must be NAME=VALUE,..., such as partition=gpu,gres=gpu:1, got {text!r}.")
    return found


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer with an option for each field of the dataclasses that `command` takes.

    Args:
        command: the verb; a parameter whose annotation is a dataclass receives an instance of it.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}

    @wraps(command)
    def call(**values: Any) -> None:  # noqa: ANN401 - what typer parsed
        made = {name: _take(group, values) for name, group in groups.items()}
        command(**values, **made)

    flat = [one for p in parameters for one in (_parameters(groups[p.name]) if p.name in groups else [p])]
    named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in flat]
    call.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in named}
    return call


def _parameters(group: Any) -> list[inspect.Parameter]:  # noqa: ANN401 - a dataclass
    """Return a parameter for each field; each must have a default, as an option has."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=field.default if field.default_factory is MISSING else field.default_factory(),
        )
        for field in fields(group)
    ]


def _take(group: Any, values: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return an instance of a dataclass from its values, which are taken out of `values`."""
    return group(**{f.name: values.pop(f.name) for f in fields(group)})
