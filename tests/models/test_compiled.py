"""`--compile`: the blocks compiled while they train, everything else as it is.

What compiles runs in a process of its own: torch.compile stumbles over the run-time checks of types that tests put
everywhere. Its backend is aot_eager, which needs no compiler and traces all that inductor would.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftbench.core.registry import registry
from peftbench.errors import RequestError
from peftbench.methods.bitfit import BitFit
from tests import studies

TRAINS = """
import json
import torch
from timm.models.vision_transformer import VisionTransformer
from torch._dynamo.backends.debugging import aot_eager
from peftbench.models import compiled
from peftbench.training.loop import Learner, Task, fit
from peftbench.errors import JobError
from peftbench.models.head import Classifier, Head
from peftbench.data.batches import FeatureBatches
from peftbench.plan import Plan
from peftbench.core.recipe import Recipe

DEPTH, STEPS = 9, 4
calls = []

def counting(graph, inputs):
    made = aot_eager(graph, inputs)
    def called(*arguments):
        calls.append(id(graph))
        return made(*arguments)
    return called

draw = torch.Generator().manual_seed(0)
images, labels = torch.randn(16, 3, 16, 16, generator=draw), torch.arange(16) % 2
# another number of single weights in every block, so that each is a graph of its own
entries = {f"blocks.{i}.attn.qkv.weight": torch.arange(0, 16 * 48, 7 + i) for i in range(DEPTH)}
entries |= {f"blocks.{i}.norm1.weight": torch.arange(3) for i in range(0, DEPTH, 4)}
plan = Plan(entries=entries, tune=frozenset({"cls_token"}))

def trained(enabled):
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=DEPTH, num_heads=2, num_classes=0, proj_drop_rate=0.1
    )
    model, before = Classifier(vit, Head(16, 2, "plain", 1.0, 0)), len(calls)
    tuned = plan.carry_out(vit)
    head = {f"head/{name}": tensor for name, tensor in model.head.state_dict(keep_vars=True).items()}
    learner = Learner(model, {**tuned.tensors, **head})
    start = learner.state()
    task = Task(FeatureBatches(images), labels, {"val": (FeatureBatches(images), labels.numpy())}, 2)
    with compiled.compiled(vit, enabled=enabled):
        progress = fit(learner, task, Recipe(batch=4, steps=STEPS, evaluations=2, warmup=0.0, lr=1e-2), 0)
    left = sum("forward" in vars(block) for block in vit.blocks)
    return start, learner.state(), progress.chosen["last"].logits["val"], len(calls) - before, left

def refuse(graph, inputs):
    raise RuntimeError("no compiler is here\\nand more lines")

compiled.BACKEND = counting
start, plain, logits, eager_calls, _ = trained(enabled=False)
_, fast, theirs, fast_calls, left = trained(enabled=True)
_, again, _, _, _ = trained(enabled=True)
compiled.BACKEND = refuse
try:
    message = trained(enabled=True)
except JobError as error:
    message = str(error)
print(json.dumps({
    "moved": max(float((plain[name] - start[name]).abs().max()) for name in plain),
    "gap": max(float((fast[name] - plain[name]).abs().max()) for name in plain),
    "logits": float(abs(theirs - logits).max()),
    "same": all(torch.equal(again[name], fast[name]) for name in fast),
    "calls": [eager_calls, fast_calls, len(set(calls))],
    "left": left,
    "message": message,
}))
"""


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """Nine blocks trained for four steps with two evaluations, as they are and compiled."""
    done = subprocess.run([sys.executable, "-c", TRAINS], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_compiled_training_ends_where_plain_training_does(trained: dict[str, Any]) -> None:
    """Dropout draws the same, too."""
    assert trained["moved"] > 1e-2
    assert trained["gap"] < 1e-6
    assert trained["logits"] < 1e-5


def test_the_same_bits_each_time(trained: dict[str, Any]) -> None:
    assert trained["same"]


def test_every_block_is_compiled_for_training_and_none_for_evaluation(trained: dict[str, Any]) -> None:
    """Also above torch's default limit of eight graphs, where it would silently stop compiling."""
    blocks, steps, runs = 9, 4, 2
    assert trained["calls"] == [0, blocks * steps, runs * blocks]


def test_nothing_is_left_over(trained: dict[str, Any]) -> None:
    assert trained["left"] == 0


def test_what_torch_cannot_compile_is_reported_in_a_sentence(trained: dict[str, Any]) -> None:
    assert trained["message"].startswith("torch.compile failed; run without --compile: ")
    assert "no compiler is here" in trained["message"]
    assert "\n" not in trained["message"]


def test_it_is_another_job(tmp_path: Path) -> None:
    """Its last bits differ; those that do not ask for it keep their ids."""
    images = studies.draw(tmp_path / "images", 4)
    plain, fast = (
        studies.jobs(studies.small(images, methods=("bitfit",), compile=enabled), studies.places(tmp_path))[0]
        for enabled in (False, True)
    )
    assert plain.id != fast.id
    assert "compile" not in plain.identity()["recipe"]
    assert fast.recipe.compile


def test_a_method_that_does_not_compile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry("methods").get("bitfit"), "compiles", False)
    images = studies.draw(tmp_path / "images", 4)
    assert registry("methods").get("bitfit") is BitFit
    with pytest.raises(RequestError, match=r"--compile does not work with bitfit"):
        studies.jobs(studies.small(images, methods=("bitfit", "lora"), compile=True), studies.places(tmp_path))
