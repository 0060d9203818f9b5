"""Several labels an image, and ordered classes: from pixels to tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logit
from sklearn import metrics
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from torch.nn import functional as F

from peftbench.core.contract import DatasetCard, Part, Result, Splits
from peftbench.core.recipe import Recipe
from peftbench.data.splits import check_parts, split
from peftbench.errors import SplitError
from peftbench.results import tables
from peftbench.results.frame import frame
from peftbench.results.store import Store
from peftbench.statistics import bootstrap
from peftbench.study import images as module
from peftbench.training import record_writer
from peftbench.training.job import run
from peftbench.training.optimizer import make_loss
from tests import studies

NAMES = ("dots", "rows", "stripes")
reference: Any = metrics  # its types allow no number for zero_division
METHODS = ("majority", "linear", "bitfit", "shpeft[ratio=0.1%,batches=2]")
MULTI = DatasetCard(
    "Drawn findings", "none", NAMES, "none", "drawn for a test", task="multi_label", group_key="patient"
)
ORDERED = replace(MULTI, title="Drawn grades", task="ordinal")


@dataclass(frozen=True)
class Drawn:
    """Two noisy images a patient; of a multi-label set their patterns are added up."""

    card: DatasetCard

    def load(self, root: Path, seed: int) -> Splits:
        del root
        rng, waves = np.random.default_rng(seed), np.sin(np.arange(studies.SIDE) / 2)
        patterns = np.stack([np.outer(waves, waves), np.tile(waves[:, None], studies.SIDE), np.tile(waves, (64, 1))])
        made = [self._part(name, n, rng, patterns) for name, n in (("a", 8), ("b", 6), ("c", 12))]
        return Splits(made[0], made[1], made[2], "drawn")

    def _part(self, name: str, patients: int, rng: np.random.Generator, patterns: NDArray[np.float64]) -> Part:
        several = self.card.task == "multi_label"
        found = np.arange(patients)[:, None] >> np.arange(3) & 1 if several else np.arange(patients) % 3
        labels = np.repeat(found, 2, axis=0)
        if several:
            labels[-1] = 1 - labels[-1]  # the last patient's images do not agree
        amounts = labels if several else np.eye(3)[labels]
        images = 127 + 50 * np.tensordot(amounts, patterns, 1) + rng.normal(0, 120, (2 * patients, 64, 64))
        shown = np.repeat(images.clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)
        names = tuple(f"{name}{i}" for i in range(2 * patients))
        return Part(shown, labels.astype(np.int64), names, tuple(f"{name}{i // 2}" for i in range(2 * patients)))


def ran(card: DatasetCard, home: Path, *methods: str) -> dict[str, Result]:
    """Every method's finished job."""
    where = studies.places(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_dataset", lambda *_: Drawn(card))
        jobs = studies.jobs(studies.small(home, methods=methods, steps=20), where)
    done = {job.method: run(job, where) for job in jobs}
    return {name: Result(r, Store(where.store).job(r.id).path) for name, r in done.items() if r is not None}


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return ran(MULTI, tmp_path_factory.mktemp("multi"), *METHODS)


# --- several labels --------------------------------------------------------------------------------------------------


def test_every_kind_of_method_learns_several_labels(multi: dict[str, Result]) -> None:
    assert {name: (r.record.status, r.record.reason) for name, r in multi.items()} == dict.fromkeys(multi, ("done", ""))
    scores = {name: r.record.choices["last"].test["auc"] or 0.0 for name, r in multi.items()}
    assert scores["majority"] == 0.5
    assert min(scores["linear"], scores["bitfit"], scores["shpeft"]) > 0.55


def test_scores_are_those_of_the_stored_logits(multi: dict[str, Result]) -> None:
    logits, labels, _ = multi["bitfit"].predictions("last")
    found = multi["bitfit"].record.choices["last"].test
    assert labels.shape == logits.shape == (24, 3)
    assert found["macro_f1"] == pytest.approx(
        reference.f1_score(labels, logits > 0, average="macro", zero_division=0.0)
    )
    assert found["auc"] == pytest.approx(roc_auc_score(labels, logits, average="macro"))
    assert found["accuracy"] == pytest.approx((labels == (logits > 0)).mean())
    assert not {"quadratic_kappa", "positive_f1", "calibration_error"} & found.keys()


def test_groups_are_scored_by_their_mean_logits_and_those_of_two_minds_left_out(multi: dict[str, Result]) -> None:
    logits, labels, _ = multi["bitfit"].predictions("last")
    means = logits.reshape(12, 2, 3).mean(1)[:-1]
    found = multi["bitfit"].record.choices["last"].test
    assert found["macro_f1_per_group"] == pytest.approx(
        reference.f1_score(labels[::2][:-1], means > 0, average="macro", zero_division=0.0)
    )
    text = "per group: 1 of 12 test groups (patient) have images of several labels and are left out"
    assert text in multi["bitfit"].record.data.notes


def test_the_baseline_without_images_predicts_the_log_odds(multi: dict[str, Result]) -> None:
    _, labels, _ = multi["majority"].predictions("last")
    logits, *_ = multi["majority"].predictions("last")
    train = Drawn(MULTI).load(Path(), 0).train.labels
    assert logits == pytest.approx(np.tile(logit(train.mean(0)), (len(labels), 1)), abs=1e-6)


def test_tables_and_intervals_take_several_labels(multi: dict[str, Result]) -> None:
    rows = frame(multi.values()).set_index("method")
    low, value, high = (float(rows[f"macro_f1{end}"].to_numpy()[2]) for end in ("_low", "", "_high"))
    assert low <= value <= high
    assert low < high
    assert sum(len(table.rows) for table in tables.main_tables(multi.values())) >= len(multi)


def test_an_interval_resamples_each_patients_labels_together() -> None:
    """Were images resampled one by one, ten copies of a patient would narrow the interval."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 2)).astype(np.float32), rng.integers(2, size=(30, 2))
    once = bootstrap.estimate([(logits, labels, range(30))]).interval
    ten_times = np.repeat(logits, 10, 0), np.repeat(labels, 10, 0), [i // 10 for i in range(300)]
    copied = bootstrap.estimate([ten_times]).interval
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_the_loss_weighs_what_is_rare() -> None:
    labels = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 0]])
    logits = torch.tensor([[0.3, -1.0]])
    truth = labels[3:].double().float()
    plain = F.binary_cross_entropy_with_logits(logits, truth)
    assert make_loss(Recipe(), labels, 2)(logits, labels[3:]) == plain
    heavier = make_loss(Recipe(class_weights="balanced"), labels, 2)(logits, labels[3:])
    wanted = (3 * F.softplus(torch.tensor(-0.3)) + F.softplus(torch.tensor(-1.0))) / 2
    assert heavier.item() == pytest.approx(wanted.item())


def test_a_split_shares_out_every_label() -> None:
    labels = (np.random.default_rng(0).random((400, 3)) < [0.5, 0.1, 0.02]).astype(np.int64)
    parts = split(labels, [str(i) for i in range(400)], (0.7, 0.1, 0.2), seed=0)
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        assert np.abs(labels[part].sum(0) - share * labels.sum(0)).max() <= 1
        assert len(part) == pytest.approx(share * 400, abs=1)


@pytest.mark.parametrize(("card", "what"), [(ORDERED, "one label"), (MULTI, "3 labels")])
def test_labels_that_the_card_does_not_promise_are_refused(card: DatasetCard, what: str) -> None:
    other = Drawn(MULTI if card is ORDERED else ORDERED).load(Path(), 0)
    with pytest.raises(SplitError, match=f"its task is {card.task}.*must have {what}"):
        check_parts(card, other)


def test_a_label_that_is_never_present_in_train_is_refused() -> None:
    whole = Drawn(MULTI).load(Path(), 0)
    blind = replace(whole.train, labels=whole.train.labels * np.array([1, 0, 1]))
    with pytest.raises(SplitError, match=f"no training image of class {MULTI.classes[1]!r}"):
        check_parts(MULTI, replace(whole, train=blind))


# --- ordered classes and groups --------------------------------------------------------------------------------------


def test_ordered_classes_have_a_kappa(tmp_path: Path) -> None:
    result = ran(ORDERED, tmp_path, "linear")["linear"]
    logits, labels, _ = result.predictions("last")
    found = result.record.choices["last"].test
    assert found["quadratic_kappa"] == pytest.approx(cohen_kappa_score(labels, logits.argmax(1), weights="quadratic"))
    means = logits.reshape(12, 2, 3).mean(1).argmax(1)
    assert found["quadratic_kappa_per_group"] == pytest.approx(
        cohen_kappa_score(labels[::2], means, weights="quadratic")
    )


def test_a_metric_of_other_people_is_not_asked_about_several_labels() -> None:
    found = record_writer.compute_metrics(np.zeros((4, 2), np.float32), np.array([[0, 1]] * 4), "multi_label")
    assert "calibration_error" not in found
    assert found["auc"] is None
    assert math.isclose(found["accuracy"] or 0, 0.5)
