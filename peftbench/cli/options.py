"""The options of the command line: one name for each, so that every verb spells it the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Several: TypeAlias = list[str] | None  # values with commas between them, written at once or one by one

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the results.")]
MethodsOption = Annotated[
    Several, typer.Option("--methods", help="Such as lora,shpeft or 'lora[r=4],shpeft[lam=0.5]'; paper or all.")
]
DatasetsOption = Annotated[
    Several,
    typer.Option("--datasets", help="Names, all, paper, medmnist, every, phantoms, folder:PATH or table:FILE.csv."),
]
SplitsOption = Annotated[
    Several, typer.Option("--splits", help="Some of official,grouped,deduplicated: what a leak between parts is worth.")
]
ShareOption = Annotated[Several, typer.Option("--train-share", help="Shares of train, such as 5%,25%,100%.")]
ShotsOption = Annotated[Several, typer.Option("--shots", help="Training images of each class, such as 4,16.")]
RatiosOption = Annotated[
    Several, typer.Option("--ratios", help="Budgets: shares (0.1%,1%) or counts (100k) of trainable weights.")
]
SeedsOption = Annotated[Several, typer.Option("--seeds", help="Such as 0,1,2.")]
BackboneOption = Annotated[
    str,
    typer.Option("--backbone", help="mini, clip_vit_b16, timm:NAME[depth=8], open_clip:ARCH/TAG; @random behind it."),
]
WeightsOption = Annotated[Path | None, typer.Option("--weights", help="File of pretrained weights for the backbone.")]
SizeOption = Annotated[int | None, typer.Option("--image-size", help="Pixels; default: the backbone's own.")]
RecipeOption = Annotated[
    str, typer.Option("--recipe", help="quick, standard, paper or official; paper[momentum=0] changes it.")
]
TuneOption = Annotated[
    int | None, typer.Option("--tune", help="Learning rates to try for each method, on validation; 0 = none.")
]
BaselinesOption = Annotated[
    bool, typer.Option("--baselines/--no-baselines", help="Add majority, linear and linear on random weights.")
]
AugmentationOption = Annotated[
    str, typer.Option("--augmentation", help="Of training images: none, light, or medical (by the modality).")
]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")]
CompileOption = Annotated[
    bool | None, typer.Option("--compile", help="torch.compile each block while it trains: for a GPU, other last bits.")
]
GraphOption = Annotated[
    bool | None, typer.Option("--graph", help="Replay each training step as one CUDA graph: a GPU only, experimental.")
]
DeterministicOption = Annotated[
    bool | None, typer.Option("--deterministic", help="On a GPU the same bits each time, with slower kernels.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="PEFTBENCH_DATA", help="Folder that holds the data sets.")
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", envvar="PEFTBENCH_CACHE", help="Folder for decoded images and estimates.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
