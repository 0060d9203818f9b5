"""A checkpoint gives back every bit, or nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from peftbench.results.store import JobFolder
from peftbench.training.checkpoint import Checkpoint
from peftbench.training.loop import Chosen, Progress


def progress() -> Progress:
    rng = np.random.default_rng(0)
    logits = {part: rng.normal(size=(4, 2)).astype(np.float32) for part in ("val", "test")}
    return Progress(
        step=7,
        loss_sum=0.1 + 0.2,
        curve=[{"step": 7, "lr": 1 / 3, "train_loss": math.inf, "val_loss": 2 / 3}],
        chosen={"validation": Chosen(7, 1 / 7, logits), "last": Chosen(7, math.inf, logits)},
        kept={"head/bias": torch.randn(2)},
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(JobFolder(tmp_path))


def test_what_was_written_is_read_bit_for_bit(checkpoint: Checkpoint) -> None:
    learner = {"values/blocks.0.attn.qkv.weight": torch.randn(3), "head/norm.num_batches_tracked": torch.tensor(7)}
    optimizer = {"0/step": torch.tensor(7.0), "0/exp_avg": torch.randn(3, 2).t()}  # not contiguous
    before = progress()
    checkpoint.write(before, learner, optimizer)
    read = checkpoint.read()
    assert read is not None
    after, *tensors = read
    assert (after.step, after.loss_sum, after.curve) == (before.step, before.loss_sum, before.curve)
    assert {rule: (c.step, c.score) for rule, c in after.chosen.items()} == {
        "validation": (7, 1 / 7),
        "last": (7, math.inf),
    }
    np.testing.assert_array_equal(after.chosen["last"].logits["test"], before.chosen["last"].logits["test"])
    for own, theirs in zip([after.kept, *tensors], [before.kept, learner, optimizer], strict=True):
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[name], theirs[name]) for name in theirs)
        assert all(own[name].dtype == theirs[name].dtype for name in theirs)


def test_tensors_that_share_memory_are_written_apart(checkpoint: Checkpoint) -> None:
    both = torch.randn(4)
    checkpoint.write(progress(), {"a": both, "b": both[:2]}, {})
    read = checkpoint.read()
    assert read is not None
    assert torch.equal(read[1]["b"], both[:2])


def test_without_a_file_there_is_nothing_to_go_on_from(checkpoint: Checkpoint) -> None:
    assert checkpoint.read() is None


def test_half_a_file_counts_as_none(checkpoint: Checkpoint) -> None:
    checkpoint.write(progress(), {"a": torch.randn(100)}, {})
    checkpoint.file.write_bytes(checkpoint.file.read_bytes()[:-40])
    assert checkpoint.read() is None


def test_a_cleared_checkpoint_leaves_no_folder(checkpoint: Checkpoint) -> None:
    checkpoint.write(progress(), {}, {})
    checkpoint.clear()
    checkpoint.clear()
    assert list(checkpoint.folder.path.iterdir()) == []


@pytest.mark.parametrize("place", ["state", "state/checkpoint.safetensors"])
def test_what_stands_in_its_place_gives_way(place: str, checkpoint: Checkpoint) -> None:
    if place == "state":
        (checkpoint.folder.path / place).touch()
    else:
        (checkpoint.folder.path / place).mkdir(parents=True)
    assert checkpoint.read() is None
    checkpoint.write(progress(), {}, {})
    assert checkpoint.read() is not None
