"""check_metric: a number for any predictions, nan where undefined, a better value for better predictions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from peftbench.core.contract import Labels, Logits, Metric, TaskKind, lower_is_better, tasks_of
from peftbench.testing.findings import Finding, Rule, refuse_torch, require, run_rules

Case = tuple[str, Logits, Labels]


@dataclass(frozen=True)
class MetricFixture:
    """A metric with its registered name."""

    metric: Metric
    name: str

    def values(self, logits: Logits, labels: Labels) -> dict[str, float]:
        """Return its values by name; a warning raises."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = self.metric(logits, labels)
        return {n: float(v) for n, v in found.items()} if isinstance(found, Mapping) else {self.name: float(found)}

    def cases(self) -> Iterator[Case]:
        """Yield ordinary predictions for each of its tasks."""
        for task in tasks_of(self.metric):
            for classes in (2, 3):
                yield f"{task}, {classes} classes", *predictions(task, classes)


def predictions(task: TaskKind, classes: int, images: int = 40) -> tuple[Logits, Labels]:
    """Return logits (n, classes) that are somewhat better than chance, and labels."""
    draw = np.random.default_rng(classes)
    labels = draw.permutation(np.arange(images) % classes)
    true = np.eye(classes, dtype=np.int64)[labels]
    noise = draw.normal(size=(images, classes))
    return (noise + true).astype(np.float32), true if task == "multi_label" else labels


def it_gives_numbers(fixture: MetricFixture) -> str:
    """Ordinary predictions give one number, or several by name, and the inputs stay unchanged."""
    seen: set[str] = set()
    for what, logits, labels in fixture.cases():
        before = logits.copy(), labels.copy()
        seen |= fixture.values(logits, labels).keys()
        same = np.array_equal(before[0], logits) and np.array_equal(before[1], labels)
        require(same, f"A metric must not change its inputs ({what}).")
    defined = any(math.isfinite(value) for _, x, y in fixture.cases() for value in fixture.values(x, y).values())
    require(defined, "A metric must be finite for some ordinary predictions.")
    return ", ".join(sorted(seen)[:4])


def undefined_values_are_nan(fixture: MetricFixture) -> str:
    """An absent class, one image, no images, or very large logits give no exception, warning or infinite value."""
    for what, logits, labels in fixture.cases():
        one = np.zeros_like(labels)
        for case, x, y in (
            ("only class 0", logits, one),
            ("one image", logits[:1], labels[:1]),
            ("no images", logits[:0], labels[:0]),
            ("logits of 10,000", (logits * 1e4).astype(np.float32), labels),
        ):
            found = fixture.values(x, y)
            require(not any(map(math.isinf, found.values())), f"The value for {case} must be finite or nan ({what}).")
    return "No exception, no warning."


def the_order_of_images_does_not_matter(fixture: MetricFixture) -> str:
    """Images with their labels in another order give the same value."""
    for what, logits, labels in fixture.cases():
        turned = np.random.default_rng(1).permutation(len(labels))
        one, other = fixture.values(logits, labels), fixture.values(logits[turned], labels[turned])
        close = all(math.isclose(one[n], other[n], abs_tol=1e-9) or math.isnan(one[n]) for n in one)
        require(close and one.keys() == other.keys(), f"The value must not depend on the order of images ({what}).")
    return "Equal to 1e-9."


def better_predictions_score_better(fixture: MetricFixture) -> str:
    """Right predictions score higher than wrong ones, or lower for a name with loss or error."""
    for what, _, labels in fixture.cases():
        true = labels if labels.ndim == 2 else np.eye(int(labels.max()) + 1)[labels]  # noqa: PLR2004
        right = (20 * true - 10).astype(np.float32)
        best, worst = fixture.values(right, labels), fixture.values(-right, labels)
        for name in best:
            gain = worst[name] - best[name] if lower_is_better(name) else best[name] - worst[name]
            require(
                math.isnan(gain) or gain > 0,
                f"{name} must be better for right predictions than for wrong ones ({what}).",
            )
    return f"{'Lower' if lower_is_better(fixture.name) else 'Higher'} is better."


def importing_it_needs_no_torch(fixture: MetricFixture) -> str:
    """Importing the module does not import torch, as reports load every metric."""
    return refuse_torch(getattr(fixture.metric, "__module__", None) or type(fixture.metric).__module__)


RULES: tuple[Rule[MetricFixture], ...] = (
    it_gives_numbers,
    undefined_values_are_nan,
    the_order_of_images_does_not_matter,
    better_predictions_score_better,
    importing_it_needs_no_torch,
)


def check_metric(metric: Metric, name: str = "") -> list[Finding]:
    """Return every rule's finding; `name` is the registered name, by default the function's."""
    return list(run_rules(RULES, MetricFixture(metric, name or getattr(metric, "__name__", type(metric).__name__))))
