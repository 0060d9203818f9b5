"""Predictions of groups (patients, lesions) from those of their images."""

from __future__ import annotations

import numpy as np

from peftbench.statistics.bootstrap import Predictions

LEAST = 1e-12  # probability, whose logarithm is finite


def by_group(run: Predictions) -> Predictions:
    """Return one prediction per group: the mean probability over its images, as logits, and the label they share.

    Groups whose images have different labels are left out, as no prediction of them could be right. With one label per
    image, the logits are logarithms of the mean softmax; with several, log-odds of the mean sigmoid.
    """
    from scipy.special import expit, logit, softmax  # noqa: PLC0415 - slow to import, and `peftbench list` needs none

    logits, labels, groups = run
    _, first, member = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    wide = logits.astype(np.float64)
    chances, counts = softmax(wide, axis=1) if labels.ndim == 1 else expit(wide), np.bincount(member)
    means = np.zeros((len(first), logits.shape[1]))
    np.add.at(means, member, chances)
    means = np.clip(means / counts[:, None], LEAST, 1 - LEAST)
    differs = (labels != labels[first][member]).reshape(len(labels), -1).any(1)
    agreed = np.bincount(member, weights=differs) == 0
    found = (np.log(means) if labels.ndim == 1 else logit(means))[agreed].astype(np.float32)
    return found, labels[first][agreed], tuple(range(int(agreed.sum())))
