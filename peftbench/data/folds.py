"""Cross-validation: the same images in K folds, each of which is the test part once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from peftbench.core.contract import DatasetCard, Splits
from peftbench.data.splits import carve, split

VAL_SHARE = 0.1  # of the images outside the fold


def fold_splits(splits: Splits, card: DatasetCard, fold: int, folds: int, seed: int) -> Splits:
    """Return the splits of fold 1 to `folds`: its images are test, and validation is split off the others.

    All parts are joined first. Folds and validation are stratified, and no group is in two parts. Raises SplitError.
    """
    whole = splits.train.joined(splits.val).joined(splits.test)
    whole = whole.take(np.argsort(np.asarray(whole.names, np.str_), kind="stable"))  # whatever the published parts are
    cuts = split(whole.labels, whole.groups, (1 / folds,) * folds, seed)
    others = np.sort(np.concatenate([cut for number, cut in enumerate(cuts, 1) if number != fold]))
    train, val = carve(whole.take(others), VAL_SHARE, seed)
    by = f", grouped by {card.group_key}" if card.group_key else ""
    rule = f"fold {fold} of {folds}, stratified{by}, 10% of the others for validation"
    return replace(splits, train=train, val=val, test=whole.take(cuts[fold - 1]), rule=rule, carved=True)
