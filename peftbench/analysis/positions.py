"""Where the chosen weights lie, how far selections agree, and whether importance before training predicts movement.

Every selection has SHARE of the backbone's weights and is made by its method's own code, with the images, the head, the
seed and the precision of the full job that it is compared with.

    moved               the weights that full fine-tuning moved most
    shpeft_...          SH-PEFT with the estimators of its paper's table 4
    spt                 SPT's most sensitive single weights, without whole matrices and vectors
    gps                 GPS: the same number of inputs for every neuron, with the biases

`positions.csv`, a row for each job, selection, block and kind of tensor:
    backbone, image_size, recipe, method, dataset, seed, selection
    block        embedding, 1, 2, ..., final
    kind         one of KINDS
    chosen       number of chosen weights
    weights      number of all weights there

`positions_overlap.csv`, a row for each job and pair of selections:
    ..., dataset, seed, selection, other
    weights, other_weights       sizes of the two masks
    overlap      |A and B| / min(|A|, |B|)
    chance       max(|A|, |B|) / N, the overlap expected of random masks of these sizes

`positions_correlation.csv`, a row for each job, SH-PEFT estimator and tensor:
    ..., dataset, seed, selection, block, kind
    tensor       name of the tensor
    weights      its size
    spearman     rank correlation, over its weights, of importance before training and movement after; empty where one
                 of them is constant
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from peftbench.analysis.full_jobs import SHARES, FullJob, FullSeries, at_level, counts
from peftbench.analysis.steps import Unit
from peftbench.models.backbone import Network
from peftbench.models.plan import Plan, Probe
from peftbench.models.tensor_names import BEFORE_BLOCKS, PROJECTIONS, TOKENS
from peftbench.models.top_k import overlap, shortest_share
from peftbench.training.job import make_method

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - by its full name the run-time type checks of the tests find it

SHARE = 0.01  # of the backbone's weights, the paper's default
ESTIMATORS: Mapping[str, Mapping[str, str]] = MappingProxyType(  # of table 4; ta alone ranks alike by L1 and L2
    {
        "shpeft_ta": {"td": "none", "ta": "L2"},
        "shpeft_td_L1": {"td": "L1", "ta": "none"},
        "shpeft_ta_td_L1": {"td": "L1", "ta": "L1"},
        "shpeft_td_L2": {"td": "L2", "ta": "none"},
        "shpeft_ta_td_L2": {"td": "L2", "ta": "L2"},
    }
)
SELECTIONS = ("moved", *ESTIMATORS, "spt", "gps")
UNSTRUCTURED: Mapping[str, Any] = MappingProxyType({"r": 8192, "alpha": 1.0, "beta": 0.0})  # spt: nothing trains whole

KINDS = (
    *("patch kernel", "tokens", "norm scale", "norm shift", "qkv", "attention out", "MLP in", "MLP out"),
    *("bias", "layer scale", "other"),
)
_LAYERS = {
    PROJECTIONS["qkv"]: "qkv",
    PROJECTIONS["proj"]: "attention out",
    PROJECTIONS["fc1"]: "MLP in",
    PROJECTIONS["fc2"]: "MLP out",
    "patch_embed.proj": "patch kernel",
}


class HasImportance(Protocol):
    """A method that states the importance by which it selects."""

    def importance(self, vit: nn.Module, probe: Probe) -> Iterator[tuple[str, Tensor]]:
        """Yield importances by tensor, a flat piece at a time."""
        ...


def place(name: str) -> tuple[str, str]:
    """Return the block and the kind of a tensor by its name in timm's VisionTransformer."""
    inside = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    block = str(int(inside[1]) + 1) if inside else "embedding" if name.startswith(BEFORE_BLOCKS) else "final"
    return block, _kind(inside[2] if inside else name)


def _kind(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    if "norm" in layer:
        return "norm scale" if leaf == "weight" else "norm shift"
    if name in TOKENS:
        return "tokens"
    if leaf == "bias":
        return "bias"
    return "layer scale" if leaf == "gamma" else _LAYERS.get(layer, "other")


# --- the work --------------------------------------------------------------------------------------------------------


def position_units(series: FullSeries) -> Iterator[Unit]:
    """Yield the pieces of work of a series: masks, overlaps and rank correlations of each job."""
    for job in series.jobs:
        for name in SELECTIONS:
            yield Unit(f"{job.name}: {name}", partial(_find_mask, job, name))
        yield Unit(f"{job.name}: places and overlaps", partial(_find_places, job))
        for name in ESTIMATORS:
            yield Unit(f"{job.name}: rank correlation of {name}", partial(_find_correlations, job, name))


def _find_mask(job: FullJob, name: str) -> str:
    return f"{sum(map(len, mask(job, name).values())):,} weights"


def mask(job: FullJob, name: str) -> dict[str, Tensor]:
    """Return the chosen entries of a selection: tensor -> ascending flat indices, int32."""
    facts = {**job.facts, "selection": name, "share": SHARE}

    def make() -> dict[str, Tensor]:
        chosen = at_level(job.moved_levels(), SHARES.index(SHARE)) if name == "moved" else _planned(job, name)
        return {tensor: index.to(torch.int32) for tensor, index in chosen if len(index)}

    return job.steps.tensors("masks", facts, make)


def _planned(job: FullJob, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what a method's own code selects; tensors that train whole are chosen whole."""
    vit = job.pretrained()
    plan = _select(vit, job, name)
    yield from plan.entries.items()
    for tensor in sorted(plan.tune):
        yield tensor, torch.arange(vit.get_parameter(tensor).numel())


def _select(vit: Network, job: FullJob, name: str) -> Plan:
    budget = counts(job.size)[SHARES.index(SHARE)]
    ratio = shortest_share(budget, job.size)
    if name in ESTIMATORS:
        method = make_method("shpeft", {**ESTIMATORS[name], "ratio": ratio})
    elif name == "spt":
        method = make_method("spt_lora", {**UNSTRUCTURED, "budget": ratio})
    else:
        method = make_method("gps", {}).within(budget, vit).method
    return method.plan(vit, job.probe(vit))


def _find_places(job: FullJob) -> str:
    found = places(job)
    return f"SH-PEFT and movement share {found['overlaps']['moved']['shpeft_ta_td_L2']:.1%}"


def places(job: FullJob) -> dict[str, Any]:
    """Return the sizes of all blocks and kinds, the chosen weights there, the sizes of the masks and their overlaps."""
    return dict(
        job.steps.value("places", {**job.facts, "selections": SELECTIONS, "share": SHARE}, partial(_places, job))
    )


def _places(job: FullJob) -> dict[str, Any]:
    masks = {name: mask(job, name) for name in SELECTIONS}
    sizes = {name: len(level) for name, level in job.moved_levels().items()}
    chosen = {name: {tensor: len(index) for tensor, index in found.items()} for name, found in masks.items()}
    overlaps: dict[str, dict[str, float]] = defaultdict(dict)
    for one, other in itertools.combinations(SELECTIONS, 2):
        pair = sorted((masks[one], masks[other]), key=lambda found: sum(map(len, found.values())))
        overlaps[one][other] = overlap(*pair)
    return {
        "sizes": _summed(sizes),
        "chosen": {name: _summed(found) for name, found in chosen.items()},
        "weights": {name: sum(found.values()) for name, found in chosen.items()},
        "overlaps": overlaps,
    }


def _summed(numbers: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """Return the sum over the tensors of each block and kind."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for name, number in numbers.items():
        found[place(name)] += number
    return [(block, kind, number) for (block, kind), number in found.items()]


def _find_correlations(job: FullJob, name: str) -> str:
    found = [rho for rho in correlations(job, name).values() if rho is not None]
    return f"{np.mean(found):+.2f} on average over {len(found)} tensors" if found else "undefined"


def correlations(job: FullJob, name: str) -> dict[str, float | None]:
    """Return for each tensor the rank correlation of an estimator's importance with the movement; None: undefined."""
    facts = {**job.facts, "estimator": name}
    return dict(job.steps.value("correlations", facts, partial(_correlations, job, name)))


def _correlations(job: FullJob, name: str) -> dict[str, float | None]:
    vit = job.pretrained()
    method = cast("HasImportance", make_method("shpeft", ESTIMATORS[name]))
    importance = _whole(method.importance(vit, job.probe(vit)))
    with job.tuned() as read:
        moved = job.moved(vit, read)
        return {
            tensor: rank_correlation(scores, change)
            for (tensor, scores), (_, change) in zip(importance, moved, strict=True)
        }


def _whole(pieces: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield whole tensors from pieces that follow each other."""
    for name, same in itertools.groupby(pieces, key=lambda piece: piece[0]):
        yield name, torch.cat([piece.flatten() for _, piece in same])


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Return Spearman's rank correlation of two flat tensors, None where one of them is constant."""
    from scipy.stats import rankdata  # noqa: PLC0415 - `peftbench list` answers without it

    ranks = [rankdata(tensor.double().numpy()) for tensor in (one, other)]
    centered = [rank - rank.mean() for rank in ranks]
    spread = float(np.sqrt((centered[0] ** 2).sum() * (centered[1] ** 2).sum()))
    return float((centered[0] * centered[1]).sum()) / spread if spread else None


# --- the tables ------------------------------------------------------------------------------------------------------


def _columns(series: FullSeries, job: FullJob) -> dict[str, Any]:
    return {**series.columns, "dataset": job.dataset, "seed": job.record.seed}


def position_frame(series: FullSeries) -> pandas.DataFrame:
    """Return `positions.csv`."""
    import pandas as pd  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    rows = []
    for job in series.jobs:
        found = places(job)
        for name in SELECTIONS:
            chosen = {(block, kind): number for block, kind, number in found["chosen"][name]}
            rows += [
                {
                    **_columns(series, job),
                    "selection": name,
                    "block": block,
                    "kind": kind,
                    "chosen": chosen.get((block, kind), 0),
                    "weights": size,
                }
                for block, kind, size in found["sizes"]
            ]
    return pd.DataFrame(rows)


def position_overlaps(series: FullSeries) -> pandas.DataFrame:
    """Return `positions_overlap.csv`."""
    import pandas as pd  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    rows = []
    for job in series.jobs:
        found = places(job)
        weights = found["weights"]
        rows += [
            {
                **_columns(series, job),
                "selection": one,
                "other": other,
                "weights": weights[one],
                "other_weights": weights[other],
                "overlap": found["overlaps"][one][other],
                "chance": max(weights[one], weights[other]) / job.size,
            }
            for one, other in itertools.combinations(SELECTIONS, 2)
        ]
    return pd.DataFrame(rows)


def position_correlations(series: FullSeries) -> pandas.DataFrame:
    """Return `positions_correlation.csv`."""
    import pandas as pd  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    rows = []
    for job in series.jobs:
        sizes = {name: len(level) for name, level in job.moved_levels().items()}
        for name in ESTIMATORS:
            rows += [
                {
                    **_columns(series, job),
                    "selection": name,
                    **dict(zip(("block", "kind"), place(tensor), strict=True)),
                    "tensor": tensor,
                    "weights": sizes[tensor],
                    "spearman": rho,
                }
                for tensor, rho in correlations(job, name).items()
            ]
    return pd.DataFrame(rows)
