"""check_metric: a number for whatever predictions, nan where it is undefined, better where it says so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from peftbench.core.contract import Labels, Logits, Metric, Task, lower_is_better, tasks_of
from peftbench.testing.findings import Finding, Rule, demand, judge, refuse_torch

Case = tuple[str, Logits, Labels]


@dataclass(frozen=True)
class Asked:
    """A metric under its registered name."""

    metric: Metric
    name: str

    def values(self, logits: Logits, labels: Labels) -> dict[str, float]:
        """Its numbers by name; a warning is an error."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = self.metric(logits, labels)
        return {n: float(v) for n, v in found.items()} if isinstance(found, Mapping) else {self.name: float(found)}

    def cases(self) -> Iterator[Case]:
        """Usual predictions for each of its tasks."""
        for task in tasks_of(self.metric):
            for classes in (2, 3):
                yield f"{task}, {classes} classes", *predictions(task, classes)


def predictions(task: Task, classes: int, images: int = 40) -> tuple[Logits, Labels]:
    """Logits (n, classes) that are somewhat better than chance, and labels."""
    draw = np.random.default_rng(classes)
    labels = draw.permutation(np.arange(images) % classes)
    true = np.eye(classes, dtype=np.int64)[labels]
    noise = draw.normal(size=(images, classes))
    return (noise + true).astype(np.float32), true if task == "multi_label" else labels


def it_gives_numbers(asked: Asked) -> str:
    """One number, or several by name, for usual predictions; its inputs stay as they were."""
    seen: set[str] = set()
    for what, logits, labels in asked.cases():
        before = logits.copy(), labels.copy()
        seen |= asked.values(logits, labels).keys()
        same = np.array_equal(before[0], logits) and np.array_equal(before[1], labels)
        demand(same, f"It changed its inputs ({what}).")
    defined = any(math.isfinite(value) for _, x, y in asked.cases() for value in asked.values(x, y).values())
    demand(defined, "It is undefined for every usual prediction.")
    return ", ".join(sorted(seen)[:4])


def what_is_undefined_is_nan(asked: Asked) -> str:
    """A class that is absent, one image, none, or logits far from zero raise nothing and warn of nothing."""
    for what, logits, labels in asked.cases():
        one = np.zeros_like(labels)
        for case, x, y in (
            ("only class 0", logits, one),
            ("one image", logits[:1], labels[:1]),
            ("no images", logits[:0], labels[:0]),
            ("logits of 10,000", (logits * 1e4).astype(np.float32), labels),
        ):
            found = asked.values(x, y)
            demand(not any(map(math.isinf, found.values())), f"It is infinite for {case} ({what}).")
    return "No exception, no warning."


def the_order_of_images_does_not_matter(asked: Asked) -> str:
    """Images, their labels with them, in another order give the same."""
    for what, logits, labels in asked.cases():
        turned = np.random.default_rng(1).permutation(len(labels))
        one, other = asked.values(logits, labels), asked.values(logits[turned], labels[turned])
        close = all(math.isclose(one[n], other[n], abs_tol=1e-9) or math.isnan(one[n]) for n in one)
        demand(close and one.keys() == other.keys(), f"Images in another order give another value ({what}).")
    return "Equal to 1e-9."


def better_predictions_score_better(asked: Asked) -> str:
    """Higher, or lower where the name says loss or error."""
    for what, _, labels in asked.cases():
        true = labels if labels.ndim == 2 else np.eye(int(labels.max()) + 1)[labels]  # noqa: PLR2004
        right = (20 * true - 10).astype(np.float32)
        best, worst = asked.values(right, labels), asked.values(-right, labels)
        for name in best:
            gain = worst[name] - best[name] if lower_is_better(name) else best[name] - worst[name]
            demand(math.isnan(gain) or gain > 0, f"{name} ranks wrong predictions above right ones ({what}).")
    return f"{'Lower' if lower_is_better(asked.name) else 'Higher'} is better, as its name says."


def importing_it_needs_no_torch(asked: Asked) -> str:
    """Reports load metrics and import no torch."""
    return refuse_torch(getattr(asked.metric, "__module__", None) or type(asked.metric).__module__)


RULES: tuple[Rule[Asked], ...] = (
    it_gives_numbers,
    what_is_undefined_is_nan,
    the_order_of_images_does_not_matter,
    better_predictions_score_better,
    importing_it_needs_no_torch,
)


def check_metric(metric: Metric, name: str = "") -> list[Finding]:
    """Every rule's finding; `name` is what it is registered as, by default what it calls itself."""
    return list(judge(RULES, Asked(metric, name or getattr(metric, "__name__", type(metric).__name__))))
