"""The five questions that a report answers first, in sentences.

Which method, how sure, at what cost, what failed or was left out, and what leaks or overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from peftbench.core.contract import Result, is_about_missing_images
from peftbench.core.leaks import describe_leaks
from peftbench.core.record import Record
from peftbench.results import advice, summary
from peftbench.results.comparison import Compared, compared
from peftbench.results.formatting import format_count, format_percent
from peftbench.results.limits import Spent, plain_latency
from peftbench.results.recommendation import recommend, scopes
from peftbench.results.summary import Block
from peftbench.results.text import printable
from peftbench.storage.sizes import format_size

Answers = list[tuple[str, list[str]]]

NAMED = 6  # methods and jobs that are named one by one; more are counted


def answers(results: Sequence[Result]) -> Answers:
    """Return each question with its answers, one or more sentences per setting and group of data sets."""
    blocks = summary.summarize(results)
    if not blocks:
        return []
    done = any(row.replicates[name].done for block in blocks for row in block.rows for name in row.replicates)
    groups = [(block, compared(block, names)) for block in blocks for names in scopes(block)]
    found = {
        "Which method?": [one.sentence for one in recommend(results, Path())] if done else ["No job has a score."],
        "How sure is that?": [sentence for _, one in groups for sentence in _certainty(one)],
        "At what cost?": [sentence for block, one in groups for sentence in _costs(block, one)],
        "What failed or was left out?": [sentence for block in blocks for sentence in _absent(block)],
        "What leaks or overlaps?": [line for block in blocks for line in (*_overlaps(block), *_leaks(block))],
    }
    several = len(blocks) > 1
    about = f"{len(blocks)} settings (backbone, size or recipe) are reported separately." if several else ""
    made = [(question, list(dict.fromkeys(map(printable, sentences)))) for question, sentences in found.items()]
    return [("What is this?", [about]), *made] if about else made


def _certainty(found: Compared) -> Iterator[str]:
    """Yield how many methods the first tier holds, and what the test images could show."""
    first = [name for name, tier in found.tiers.items() if tier == 1]
    where = advice.words(found.datasets)
    if len(found.tiers) > 1:
        ties = f"{len(first)} of {len(found.tiers)} methods are in the first tier" if len(first) > 1 else "One leads"
        yield f"{where}: {ties}; p-values are adjusted by Holm, intervals hold 95%."
    for remark in found.remarks():
        yield f"{where}: {remark[0].lower()}{remark[1:]}"


def _costs(block: Block, found: Compared) -> Iterator[str]:
    """Yield what each method of the first tier costs, the cheapest in weights first."""
    plain = plain_latency(block)
    rows = {row.name: row for row in found.rows}
    spent: list[tuple[str, Spent]] = []
    for name in (name for name, tier in found.tiers.items() if tier == 1):
        records = [record for dataset in found.datasets for record in rows[name].replicates[dataset].records]
        if cost := Spent.of(records, plain):
            spent.append((name, cost))
    spent.sort(key=lambda item: item[1].trainable)
    for name, cost in spent[:NAMED]:
        yield (
            f"{advice.words(found.datasets)}: {name} trains {format_count(cost.trainable)} weights of the backbone "
            f"({format_percent(cost.share)}), peak memory {format_size(cost.memory)}, {cost.seconds:,.0f} s a job"
            f"{'' if math.isnan(cost.latency) else f', {cost.latency_text} an image in prediction'}."
        )
    if len(spent) > NAMED:
        yield f"{advice.words(found.datasets)}: the costs of {len(spent) - NAMED} more are in the tables."


def _absent(block: Block) -> Iterator[str]:
    """Yield failed and damaged jobs, methods that cannot be compared, and images that are missing."""
    failed = [(row, name, job) for row in block.rows for name, one in row.replicates.items() for job in one.failed]
    for row, name, job in failed[:NAMED]:
        yield f"{row.name} on {name}, seed {job.record.seed}: {summary.failure(job).rstrip('.')}."
    if len(failed) > NAMED:
        yield f"{len(failed) - NAMED} more jobs failed; the table of failed jobs lists all."
    for name in block.datasets:
        missing = compared(block, (name,)).missing
        if missing:
            yield f"{name}: not compared, because jobs or predictions are missing: {', '.join(missing)}."
        notes = block.records[name].data.notes
        yield from (f"{name}: {note.rstrip('.')}." for note in notes if is_about_missing_images(note))
    if not failed:
        yield f"{block.setting.short}: no job failed."


def _overlaps(block: Block) -> Iterator[str]:
    """Yield the data sets whose test images the backbone may have seen in its pretraining."""
    for name, reason in block.overlaps(block.datasets).items():
        yield f"{name}: the pretraining of {block.setting.backbone} may have seen its test images: {reason}."


def _leaks(block: Block) -> Iterator[str]:
    """Yield what the audit found on each data set."""
    for name in block.datasets:
        yield f"{name}: {_audit(block.records[name])}"


def _audit(record: Record) -> str:
    if found := describe_leaks(record.data.audit):
        return f"the audit found {found}."
    if record.data.audit:
        return "the audit found no image or group in two parts."
    return "not audited; run `peftbench data check`."
