"""Measure how good a backbone's frozen features are: k-NN and linear accuracy, without training the backbone.

    python tools/features.py --data DATA --datasets covid_ct,busi mini mini@random

Accuracy is measured on the test part and, with less noise, in five grouped folds over all images. The figures of `mini`
are in reports/mini.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tabulate import tabulate

from peftbench.core.spec import Places
from peftbench.data.batches import ImageBatches
from peftbench.data.pixel_cache import Data
from peftbench.models import backbone
from peftbench.study import defaults, images
from peftbench.training.loop import forward

NEIGHBORS = 10
FOLDS = 5
MOST = 2500  # images in folds: more would change the third decimal


def judges() -> tuple[Any, Any]:
    """Return the two classifiers: weighted nearest neighbors by cosine distance, and a logistic regression."""
    return (
        KNeighborsClassifier(NEIGHBORS, metric="cosine", weights="distance"),
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
    )


def on_test(seen: Mapping[str, NDArray[np.float32]], data: Data) -> list[float]:
    """Return the test accuracy of each classifier, fitted on train."""
    labels = data.labels
    return [float(j.fit(seen["train"], labels["train"]).score(seen["test"], labels["test"])) for j in judges()]


def in_folds(seen: Mapping[str, NDArray[np.float32]], data: Data) -> list[float]:
    """Return the mean accuracy of each classifier over grouped folds of all images, or of MOST drawn from them."""
    features, labels = (np.concatenate([part[name] for name in seen]) for part in (seen, data.labels))
    groups = np.unique([group for name in seen for group in data.groups[name]], return_inverse=True)[1]
    some = np.random.default_rng(0).permutation(len(labels))[:MOST]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    found = (cross_val_score(j, features[some], labels[some], groups=groups[some], cv=folds) for j in judges())
    return [float(scores.mean()) for scores in found]


def _features(vit: torch.nn.Module, data: Data, part: str, source: backbone.Source) -> NDArray[np.float32]:
    images = ImageBatches(data.pixels(part), source.preprocessing, torch.device("cpu"))
    found: NDArray[np.float32] = forward(vit, images, torch.bfloat16).float().numpy()
    return found


def rows(name: str, datasets: Sequence[str], places: Places, image_size: int | None) -> tuple[list[str], list[str]]:
    """Return a backbone's cells, on test and in folds; `places.weights` is used by backbones that need a file."""
    small = name.startswith("mini")  # its weights ship with the package and have one size
    weights = None if small or name.endswith("@random") else places.weights
    source = backbone.locate(name, None if small else image_size, weights)
    vit = source.build(seed=0)
    tested, folded = [name], [name]
    for dataset in datasets:
        data = images.load(dataset, 0, source.preprocessing, places)
        seen = {part: _features(vit, data, part, source) for part, size in data.sizes.items() if size}
        tested.append("{:.3f} / {:.3f}".format(*on_test(seen, data)))
        folded.append("{:.3f} / {:.3f}".format(*in_folds(seen, data)))
    return tested, folded


def main() -> None:
    """Print both tables for the backbones and data sets given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--datasets", default="covid_ct,busi,chest_xray")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--image-size", type=int)
    asked = parser.parse_args()
    places = defaults.places(Path("runs"), asked.data, None, asked.weights, "cpu")
    names = asked.datasets.split(",")
    found = [rows(name, names, places, asked.image_size) for name in asked.backbones]
    for what, lines in zip(("test", f"{FOLDS} folds"), zip(*found, strict=True), strict=True):
        head = [f"k-NN / linear accuracy, {what}", *names]
        sys.stdout.write(tabulate(lines, head, tablefmt="github") + "\n\n")


if __name__ == "__main__":
    main()
