"""How good are a backbone's frozen features? k-NN and linear accuracy on test, without any training of the backbone.

    python -m peftbench.features --data DATA --datasets covid_ct,busi mini mini@random

This is how `mini` was judged; its figures are in reports/mini.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tabulate import tabulate

from peftbench import backbone, request, study
from peftbench.engine import forward
from peftbench.pixels import Data, Images
from peftbench.recipe import RECIPES
from peftbench.spec import Places

NEIGHBOURS = 10


def judge(data: Data, source: backbone.Source) -> tuple[float, float]:
    """Accuracy on test of the nearest train images (cosine distance, weighted) and of a logistic regression."""
    vit = source.build(seed=0)
    seen = {part: _features(vit, data, part, source) for part in ("train", "test")}
    judges = (
        KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance"),
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
    )
    labels = data.labels
    knn, linear = (j.fit(seen["train"], labels["train"]).score(seen["test"], labels["test"]) for j in judges)
    return float(knn), float(linear)


def _features(vit: torch.nn.Module, data: Data, part: str, source: backbone.Source) -> NDArray[np.float32]:
    images = Images(data.pixels(part), source.preprocessing, torch.device("cpu"))
    found: NDArray[np.float32] = forward(vit, images).float().numpy()
    return found


def table(backbones: list[str], datasets: list[str], places: Places, image_size: int | None) -> str:
    """A Markdown table, one row a backbone; `places.weights` goes to those that need a file."""
    rows = []
    for name in backbones:
        small = name.startswith("mini")  # it brings its weights and knows one size
        weights = None if small or name.endswith("@random") else places.weights
        source = backbone.find(name, None if small else image_size, weights)
        found = (study.load(d, 0, RECIPES["standard"], source, places, skip_broken=False) for d in datasets)
        rows.append([name, *("{:.3f} / {:.3f}".format(*judge(data, source)) for data in found)])
    return tabulate(rows, ["k-NN / linear accuracy", *datasets], tablefmt="github")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--datasets", default="covid_ct,busi,chest_xray")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--image-size", type=int)
    asked = parser.parse_args()
    places = request.places(Path("runs"), asked.data, None, asked.weights, "cpu")
    sys.stdout.write(table(asked.backbones, asked.datasets.split(","), places, asked.image_size) + "\n")


if __name__ == "__main__":
    main()
