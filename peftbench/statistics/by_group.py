"""Predictions of groups (patients, lesions) from those of their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Labels
from peftbench.statistics.bootstrap import Predictions
from peftbench.statistics.scores import Values

SMALLEST = 1e-12  # probability after clipping, so that its logarithm is finite


def by_group(run: Predictions) -> Predictions:
    """Return one prediction per group: the mean probability over its images, as logits, and the label they share.

    Groups whose images have different labels are left out. With one label per image, the logits are logarithms of the
    mean softmax; with several, log-odds of the mean sigmoid. The metrics `<metric>_per_group` in records average logits
    instead, as they have since version 0.1.0.
    """
    from scipy.special import expit, logit, softmax  # noqa: PLC0415 - slow to import, and `peftbench list` needs none

    logits, labels, groups = run
    wide, is_single = logits.astype(np.float64), labels.ndim == 1
    means, truth, _ = group_means(softmax(wide, axis=1) if is_single else expit(wide), labels, groups)
    means = np.clip(means, SMALLEST, 1 - SMALLEST)
    found = (np.log(means) if is_single else logit(means)).astype(np.float32)
    return found, truth, tuple(range(len(truth)))


def group_means(values: NDArray[Any], labels: Labels, groups: Sequence[object]) -> tuple[Values, Labels, int]:
    """Return the mean values (groups, columns) and the label of each group, and the number of groups left out.

    `values` has one row per image. Groups whose images have different labels are left out, as no prediction of them
    could be right.
    """
    names, first, member = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    means = np.zeros((len(names), values.shape[1]))
    np.add.at(means, member, values)
    means /= np.bincount(member)[:, None]
    differs = (labels != labels[first][member]).reshape(len(labels), -1).any(1)
    agreed = np.bincount(member, weights=differs) == 0
    return means[agreed], labels[first][agreed], int((~agreed).sum())
