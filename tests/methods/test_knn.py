"""k-nearest neighbors: the formula on few features, and as a job."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from peftbench.errors import RequestError
from peftbench.methods.knn import FLOOR, KNN, Neighbors
from peftbench.training.job import run
from tests.studies import draw, jobs, places, small


def test_the_nearest_vote_by_their_similarity() -> None:
    """Of three neighbors at cosines 1, .6 and -1 the two nearest count, with exp(1 / T) against exp(.6 / T)."""
    features = torch.tensor([[2.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
    classifier = Neighbors(features, torch.tensor([0, 2, 1]), 3, k=2, temperature=0.2)
    first = 1 / (1 + math.exp(-0.4 / 0.2))
    expected = torch.tensor([[first, 0.0, 1 - first]]) * (1 - FLOOR) + FLOOR / 3
    torch.testing.assert_close(classifier(torch.tensor([[5.0, 0.0]])).exp(), expected)


def test_of_labels_each_has_its_own_odds() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    classifier = Neighbors(features, torch.tensor([[1, 0, 1], [1, 0, 0]]), 3, k=20, temperature=0.07)
    share = classifier(torch.tensor([[1.0, 0.0]])).sigmoid()
    torch.testing.assert_close(share, torch.tensor([[1 - FLOOR / 2, FLOOR / 2, 0.5]]))


def test_predictions_are_those_of_scikit_learn() -> None:
    draw_ = np.random.default_rng(0)
    train, test = draw_.standard_normal((80, 6)), draw_.standard_normal((40, 6))
    labels = draw_.integers(4, size=80)
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    weights = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731 - as scikit-learn takes it
    peer = KNeighborsClassifier(5, metric="cosine", weights=weights).fit(train, labels)  # pyright: ignore[reportArgumentType] - its stubs lack functions
    ours = Neighbors(torch.tensor(train), torch.tensor(labels), 4, k=5, temperature=0.07)
    share = (ours(torch.tensor(test)).exp().numpy() - FLOOR / 4) / (1 - FLOOR)
    np.testing.assert_allclose(share, peer.predict_proba(test), atol=1e-4)


def test_a_job_trains_nothing_and_leaves_no_delta(tmp_path: Path) -> None:
    where = places(tmp_path)
    (job,) = jobs(small(draw(tmp_path / "images", 24), methods=("knn",), tune=2, augmentation="light"), where)
    record = run(job, where)
    assert record is not None
    assert record.status == "done", record.reason
    assert record.counts is not None
    assert (record.counts.trainable, record.counts.head) == (0, 0)
    assert {"validation", "last", "oracle"} <= record.choices.keys()
    files = {file.name for file in (where.store / "jobs" / job.id).iterdir()}
    assert "predictions.npz" in files
    assert not files & {"delta.json", "delta.safetensors"}


def test_the_number_of_neighbors_is_at_least_1() -> None:
    with pytest.raises(RequestError, match="knn: k must be at least 1, got 0"):
        KNN(k=0)
