"""Write an analysis: CSV files, figures, and a Markdown file that states in words what was found and what is missing.

The columns of the CSV files are described at the top of `weight_change.py` and `positions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peftbench.analysis import figures, positions, weight_change
from peftbench.analysis.figures import TITLES, by_key
from peftbench.analysis.full_jobs import SHARES, FullSeries
from peftbench.analysis.positions import ESTIMATORS, SELECTIONS
from peftbench.analysis.steps import Unit
from peftbench.analysis.weight_change import ORDERS, Kept
from peftbench.core.constants import HYBRID_SHARES, KEPT, TENTH
from peftbench.results.formatting import format_percent, format_points
from peftbench.results.frame import as_csv
from peftbench.results.text import markdown_text, printable
from peftbench.storage.files import make_private_folder, write_text

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - by its full name the run-time type checks of the tests find it

VERDICTS: Mapping[str, str] = {
    "yes": f"at least {KEPT:.0%} of it is kept",
    "no": f"less than {KEPT:.0%} of it is kept",
    "undecided": f"undecided whether {KEPT:.0%} of it is kept",
    "unknown": "the interval is unknown, as the test part has fewer than two groups",
}


@dataclass(frozen=True)
class Found:
    """What an analysis found on one series."""

    tables: Mapping[str, pandas.DataFrame]  # stem of the CSV file -> rows
    sentences: Sequence[str]
    grids: Mapping[str, str]  # title -> table in Markdown
    figures: Mapping[str, Callable[[Path], list[Path]]]  # stem -> writer of the figure


@dataclass(frozen=True)
class Analysis:
    """One of the analyses: its work, and its report."""

    title: str
    how: str  # it was computed, in sentences
    units: Callable[[FullSeries], Iterator[Unit]]
    report: Callable[[FullSeries], Found | None]  # None where the series has nothing to compare


def write(name: str, found: Sequence[FullSeries], out: Path, kept: Path | None) -> tuple[list[Path], list[str]]:
    """Write the report of an analysis whose units have run; return its files and its sentences.

    The CSV files are also written to the folder `kept` of the store, where `peftbench claims` reads them.
    """
    import pandas as pd  # noqa: PLC0415 - `peftbench list` answers without it

    out.mkdir(parents=True, exist_ok=True)
    if kept:
        make_private_folder(kept)
    analysis, files = ANALYSES[name], list[Path]()
    reports = [analysis.report(series) for series in found]
    for stem in dict.fromkeys(stem for one in reports if one for stem in one.tables):
        table = as_csv(pd.concat([one.tables[stem] for one in reports if one]))
        files.append(out / f"{stem}.csv")
        write_text(files[-1], table)
        if kept:
            write_text(kept / f"{stem}.csv", table, private=True)
    images = list[list[str]]()
    for number, one in enumerate(reports, 1):
        mark = f"_{number}" if len(reports) > 1 else ""
        drawn = [draw(out / f"{stem}{mark}") for stem, draw in one.figures.items()] if one else []
        images.append([path.name for paths in drawn for path in paths if path.suffix == ".svg"])
        files += [path for paths in drawn for path in paths]
    files.append(out / f"{name}.md")
    write_text(files[-1], _markdown(analysis, found, reports, images))
    spoken = [line for series, one in zip(found, reports, strict=True) for line in _spoken(series, one)]
    return files, spoken


def _spoken(series: FullSeries, found: Found | None) -> list[str]:
    return [f"{series.title}:", *(found.sentences if found else ()), *series.missing]


def _markdown(
    analysis: Analysis, found: Sequence[FullSeries], reports: Sequence[Found | None], images: Sequence[Sequence[str]]
) -> str:
    lines = [f"# {analysis.title}", "", analysis.how, ""]
    for series, one, names in zip(found, reports, images, strict=True):
        lines += [f"## {markdown_text(printable(series.title))}", ""]
        for sentence in one.sentences if one else ["There is nothing to compare."]:
            lines += [markdown_text(printable(sentence)), ""]
        if series.missing:
            lines += ["What is missing:", "", *(f"- {markdown_text(printable(line))}" for line in series.missing), ""]
        lines += [f"![{analysis.title}]({name})\n" for name in names]
        for title, grid in one.grids.items() if one else ():
            lines += [f"### {markdown_text(title)}", "", grid, ""]
    return "\n".join(lines)


def _grid(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    from tabulate import tabulate  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    cells = [[markdown_text(printable(cell)) for cell in row] for row in rows]
    align = ["left", *["right"] * (len(columns) - 1)]
    return tabulate(cells, columns, tablefmt="github", disable_numparse=True, colalign=align)


# --- sparsity --------------------------------------------------------------------------------------------------------


def _sparsity(series: FullSeries) -> Found:
    found = weight_change.kept(series)
    names = list(dict.fromkeys(one.dataset for one in found))
    return Found(
        {"sparsity": weight_change.evaluations(series), "sparsity_kept": weight_change.kept_frame(series, found)},
        [sentence for name in names for sentence in _kept_sentences(name, found)],
        {f"{name}: share of full fine-tuning's macro F1 that is kept (%)": _kept_grid(name, found) for name in names},
        {"sparsity": lambda stem: figures.sparsity_figure(series, found, stem)},
    )


def _kept_sentences(name: str, found: Sequence[Kept]) -> Iterator[str]:
    at = {(one.order, one.share): one for one in found if one.dataset == name}
    tenth, full, none = at["moved", TENTH], at["all", 1.0], at["none", 0.0]
    seeds = f"{tenth.seeds} seed{'s' if tenth.seeds > 1 else ''}, {tenth.kept.clusters} test groups"
    yield (
        f"{name} ({seeds}): with the {TENTH:.0%} most-moved weights macro F1 is {format_points(tenth.score.value)}, "
        f"with all tuned weights {format_points(full.score.value)}: {_with_interval(tenth)} of full fine-tuning's "
        f"score{_by_seed(tenth)}; {VERDICTS[tenth.verdict]}."
    )
    others = ", ".join(f"{TITLES[order]} {_with_interval(at[order, TENTH])}" for order in ORDERS[1:])
    yield f"The same number of weights chosen in other ways keeps: {others}."
    yield f"Pretrained weights alone keep {_with_interval(none)}."
    if none.kept.value >= KEPT:
        yield "The pretrained backbone with the tuned head does as well, so this data set shows nothing about sparsity."
    enough = [share for share in SHARES if at["moved", share].kept.value >= KEPT]
    least = f"{format_percent(enough[0])} of the weights" if enough else "all"
    yield f"The smallest share tried that keeps {KEPT:.0%}, without its interval: {least}."


def _by_seed(one: Kept) -> str:
    found = ", ".join(f"{format_points(value)}%" for value in one.by_seed)
    return f" (by seed {found})" if len(one.by_seed) > 1 else ""


def _with_interval(one: Kept) -> str:
    low, high = one.kept.interval.low, one.kept.interval.high
    bounds = "" if np.isnan(low) else f" [{format_points(low)}, {format_points(high)}]"
    return f"{format_points(one.kept.value)}%{bounds}"


def _kept_grid(name: str, found: Sequence[Kept]) -> str:
    at = {(one.order, one.share): one for one in found if one.dataset == name}
    rows = [["0%", *[_with_interval(at["none", 0.0])] * len(ORDERS)]]
    rows += [[format_percent(share), *(_with_interval(at[order, share]) for order in ORDERS)] for share in SHARES]
    return _grid([*rows, ["100%", *["100.0%"] * len(ORDERS)]], ["share", *(TITLES[order] for order in ORDERS)])


# --- hybridity -------------------------------------------------------------------------------------------------------


def _hybridity(series: FullSeries) -> Found | None:
    table = weight_change.overlap_frame(series)
    if table.empty:
        return None
    matrix = weight_change.overlap_matrix(table)
    return Found(
        {"hybridity": table, "hybridity_matrix": matrix},
        [_overlap_sentence(table[table["share"] == share], share) for share in HYBRID_SHARES],
        {
            f"Overlap of the {format_percent(share)} most-moved weights (%)": _overlap_grid(series, matrix, share)
            for share in HYBRID_SHARES
        },
        {"hybridity": lambda stem: figures.hybridity_figure(series, matrix, stem)},
    )


def _overlap_sentence(at: pandas.DataFrame, share: float) -> str:
    """Return what the pairs of one share show."""
    chance = float(at["chance"].iloc[0])
    same = at["dataset"] == at["other"]
    between, ceiling = at.loc[~same, "overlap"], at.loc[same, "overlap"]
    pieces = [f"chance is {format_percent(chance)}"]
    if len(between):
        mean = between.mean()
        pieces.append(f"between data sets {_range(between)}, {mean / chance:.1f} times chance")
    if len(ceiling):
        pieces.append(f"between two seeds of one data set {_range(ceiling)}, the ceiling")
    if len(between) and len(ceiling):
        pieces.append(f"data sets share {between.mean() / ceiling.mean():.0%} of what seeds share")
    return f"Of the {format_percent(share)} most-moved weights: {'; '.join(pieces)}."


def _range(values: pandas.Series[float]) -> str:
    several = f" ({format_points(values.min())} to {format_points(values.max())}, {len(values)} pairs of models)"
    return f"{format_points(values.mean())}%{several if len(values) > 1 else ' (one pair of models)'}"


def _overlap_grid(series: FullSeries, matrix: pandas.DataFrame, share: float) -> str:
    at = {
        frozenset((one, other)): format_points(value)
        for one, other, value, of in zip(
            matrix["dataset"], matrix["other"], matrix["overlap"], matrix["share"], strict=True
        )
        if of == share
    }
    names = list(series.datasets)
    rows = [[one, *(at.get(frozenset((one, other)), "no other seed") for other in names)] for one in names]
    return _grid(rows, ["", *map(markdown_text, names)])


# --- positions -------------------------------------------------------------------------------------------------------


def _positions(series: FullSeries) -> Found:
    places = positions.position_frame(series)
    overlaps, ranks = positions.position_overlaps(series), positions.position_correlations(series)
    return Found(
        {"positions": places, "positions_overlap": overlaps, "positions_correlation": ranks},
        [*_place_sentences(places), *_agreement_sentences(overlaps), *_rank_sentences(ranks)],
        {
            "Share of the chosen weights in each kind of tensor (%)": _kind_grid(places),
            "Rank correlation of importance before training and movement after": _rank_grid(ranks),
        },
        {
            "positions": lambda stem: figures.places_figure(series, places, stem),
            "positions_overlap": lambda stem: figures.agreement_figure(series, overlaps, stem),
            "positions_correlation": lambda stem: figures.correlation_figure(series, ranks, stem),
        },
    )


def _by_kind(places: pandas.DataFrame, name: str, column: str = "chosen") -> dict[str, float]:
    """Return the share of a selection's weights in each kind of tensor, the largest first."""
    found = places[places["selection"] == name].groupby("kind")[column].sum()
    return by_key((found / found.sum()).sort_values(ascending=False))


def _place_sentences(places: pandas.DataFrame) -> Iterator[str]:
    whole = _by_kind(places, "moved", "weights")
    for name in figures.HEAT_MAPS:
        first = [
            f"{kind} {share:.0%} (of all weights {whole[kind]:.1%})"
            for kind, share in list(_by_kind(places, name).items())[:3]
        ]
        yield f"Chosen weights, {TITLES[name]}: most are in {', '.join(first)}."


def _agreement_sentences(overlaps: pandas.DataFrame) -> Iterator[str]:
    mean = by_key(overlaps.groupby(["selection", "other"], sort=False)["overlap"].mean())
    moved = [f"{TITLES[name]} {mean['moved', name]:.1%}" for name in SELECTIONS[1:]]
    chance = overlaps.loc[overlaps["selection"] == "moved", "chance"]
    yield (
        f"Overlap with the weights that full fine-tuning moves most: {', '.join(moved)}; "
        f"chance {chance.min():.2%} to {chance.max():.2%}."
    )
    variants = {pair: value for pair, value in mean.items() if set(pair) <= set(ESTIMATORS)}
    least, most = min(variants, key=lambda pair: variants[pair]), max(variants, key=lambda pair: variants[pair])
    yield (
        f"SH-PEFT's estimators overlap by {variants[least]:.1%} ({_pair(least)}) to {variants[most]:.1%} "
        f"({_pair(most)})."
    )


def _pair(pair: Sequence[str]) -> str:
    return " and ".join(TITLES[name].removeprefix("SH-PEFT: ") for name in pair)


def _rank_sentences(ranks: pandas.DataFrame) -> Iterator[str]:
    for name in ESTIMATORS:
        by_kind = ranks[ranks["selection"] == name].groupby("kind")["spearman"].mean().dropna()
        if by_kind.empty:
            continue
        yield (
            f"{TITLES[name]}: its rank correlation with movement is {by_kind.mean():+.2f} on average over kinds of "
            f"tensors, from {by_kind.min():+.2f} ({by_kind.idxmin()}) to {by_kind.max():+.2f} ({by_kind.idxmax()}); "
            "0 predicts nothing."
        )


def _kind_grid(places: pandas.DataFrame) -> str:
    shares = {name: _by_kind(places, name) for name in SELECTIONS}
    kinds = [kind for kind in positions.KINDS if kind in shares["moved"]]
    rows = [[kind, *(format_points(shares[name][kind]) for name in SELECTIONS)] for kind in kinds]
    return _grid(rows, ["kind", *(TITLES[name] for name in SELECTIONS)])


def _rank_grid(ranks: pandas.DataFrame) -> str:
    found: Any = ranks.groupby(["kind", "selection"])["spearman"].agg(["mean", "min", "max"])
    kinds = [kind for kind in positions.KINDS if kind in set(ranks["kind"])]
    rows = [[kind, *(_rank_cell(*found.loc[kind, name]) for name in ESTIMATORS)] for kind in kinds]
    return _grid(rows, ["kind", *(TITLES[name] for name in ESTIMATORS)])


def _rank_cell(mean: float, least: float, most: float) -> str:
    mean, least, most = (round(value, 2) + 0.0 for value in (mean, least, most))  # + 0.0: no negative zero
    return "undefined" if np.isnan(mean) else f"{mean:+.2f} ({least:+.2f} to {most:+.2f})"


ANALYSES: Mapping[str, Analysis] = {
    "sparsity": Analysis(
        "Sparsity: how few of full fine-tuning's changes are needed",
        "The tuned values of some weights are put into the pretrained backbone, the tuned head is kept, and the test "
        "part is predicted without further training. Intervals are at 95%, by bootstrap over the groups of the test "
        "part, score and full fine-tuning's score resampled together and averaged over seeds; the choice of seeds is "
        "not covered.",
        weight_change.sparsity_units,
        _sparsity,
    ),
    "hybridity": Analysis(
        "Hybridity: how many of the most-moved weights tasks share",
        "Overlap is |A and B| / k of the k most-moved weights of two fully fine-tuned models. Chance is that of two "
        "random selections. The ceiling is the same data set with another seed: seeds differ in the head, the order of "
        "images and, where a data set has no published parts, in the parts.",
        weight_change.hybridity_units,
        _hybridity,
    ),
    "positions": Analysis(
        "Positions: where the chosen weights lie",
        "Every selection has 1% of the backbone's weights and is made by its method's own code before training. SPT is "
        "reduced to its most sensitive single weights. Overlap is |A and B| divided by the smaller of both. Rank "
        "correlations are Spearman's, within each tensor; means and ranges are over tensors and models.",
        positions.position_units,
        _positions,
    ),
}
