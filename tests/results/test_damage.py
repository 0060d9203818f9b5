"""Stored files that were modified: they are refused or made again, never used."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peftbench.cli.status import describe
from peftbench.core.contract import Result
from peftbench.data import audit, pixel_cache
from peftbench.errors import DeltaError, StoreError
from peftbench.models import delta
from peftbench.models.plan import Plan
from peftbench.results.store import JobFolder, Store
from peftbench.storage.checked_tensors import cached
from peftbench.training.checkpoint import Checkpoint
from peftbench.training.loop import Chosen, Progress
from tests import records
from tests.fuzzing import damage, drawn, fresh, or_refused

ROOT = Path(__file__).parents[2]
BASE = "ab" * 32
TENSORS = {
    "even/a": torch.arange(6.0).view(2, 3).t(),
    "odd/b": torch.tensor([1.5], dtype=torch.bfloat16),
    "odd/none": torch.zeros(0, 2),
    "odd/one": torch.tensor(3),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


def damaged(data: st.DataObject, file: Path) -> bool:
    """Change some bytes of a file; whether any is another now."""
    before = file.read_bytes()
    file.write_bytes(data.draw(damage(before)))
    return file.read_bytes() != before


def same(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return own.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype for name, tensor in own.items()
    )


# --- the cache -------------------------------------------------------------------------------------------------------


class Maker:
    """Makes the tensors and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return dict(TENSORS)


@drawn
@given(st.data())
def test_kept_tensors_are_whole_or_made_again(home: Path, data: st.DataObject) -> None:
    file, make = fresh(home) / "key" / "squares_all.safetensors", Maker()
    assert same(cached(file, make), TENSORS)
    assert same(cached(file, make), TENSORS)
    assert make.calls == 1
    damaged(data, file)
    assert same(cached(file, make), TENSORS)
    calls = make.calls
    assert same(cached(file, make), TENSORS)
    assert make.calls == calls


def test_one_changed_number_is_seen(tmp_path: Path) -> None:
    file, make = tmp_path / "key" / "squares_all.safetensors", Maker()
    cached(file, make)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert same(cached(file, make), TENSORS)
    assert make.calls == 2


def test_tensors_of_another_key_are_not_taken(tmp_path: Path) -> None:
    make = Maker()
    for key in ("one", "two"):
        cached(tmp_path / key / "squares_all.safetensors", make)
    shutil.copy(tmp_path / "one" / "squares_all.safetensors", tmp_path / "two" / "squares_all.safetensors")
    cached(tmp_path / "two" / "squares_all.safetensors", make)
    assert make.calls == 3


def test_an_error_of_the_maker_is_its_own(tmp_path: Path) -> None:
    def fail() -> dict[str, Tensor]:
        raise ValueError("no gradient")

    with pytest.raises(ValueError, match="no gradient") as error:
        cached(tmp_path / "key" / "file.safetensors", fail)
    assert error.value.__context__ is None


# --- what is JSON ----------------------------------------------------------------------------------------------------

STRANGE = [b"5", b"null", b'"a"', b"[1]", b'{"digest": [5]}', b'{"groups_across_parts": "x"}', 200_000 * b"["]


@pytest.mark.parametrize("content", STRANGE, ids=range(len(STRANGE)))
def test_strange_json_in_the_cache_counts_as_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pixels.npy").touch()
    (tmp_path / "parts.json").write_bytes(content)
    assert not pixel_cache.is_whole(tmp_path)
    audit.save_counts(tmp_path, "abc", {"broken": 3})
    assert audit.load_counts(tmp_path, "abc") == {"broken": 3}
    audit.counts_file(tmp_path, "abc").write_bytes(content)
    assert audit.load_counts(tmp_path, "abc") == {}


UNTOLD = [*STRANGE, b'{"alias": "", "method": 5, "dataset": [], "seed": 0}']


@pytest.mark.parametrize("content", UNTOLD, ids=range(len(UNTOLD)))
def test_a_job_with_a_strange_file_is_listed(content: bytes, tmp_path: Path) -> None:
    here = Store(tmp_path)
    here.job("abc").path.mkdir(parents=True)
    here.job("abc").request_file.write_bytes(content)
    assert describe(here.job("abc"), "interrupted", None).row[:2] == ("abc", "interrupted")


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint(folder: Path) -> Checkpoint:
    logits = {"test": np.arange(4, dtype=np.float32).reshape(2, 2)}
    progress = Progress(step=3, loss_sum=0.5, curve=[{"step": 3.0}], chosen={"last": Chosen(3, 0.5, logits)})
    written = Checkpoint(JobFolder(folder))
    written.write(progress, TENSORS, {"0/step": torch.tensor(3.0)})
    return written


@drawn
@given(st.data())
def test_a_checkpoint_is_whole_or_none(home: Path, data: st.DataObject) -> None:
    one = checkpoint(fresh(home))
    damaged(data, one.file)
    read = one.read()
    if read is not None:  # a value that has no meaning was changed
        progress, learner, optimizer = read
        assert (progress.step, progress.loss_sum, progress.curve) == (3, 0.5, [{"step": 3.0}])
        assert same(learner, TENSORS)
        assert same(optimizer, {"0/step": torch.tensor(3.0)})


def test_a_changed_number_makes_a_checkpoint_none(tmp_path: Path) -> None:
    one = checkpoint(tmp_path)
    content = one.file.read_bytes()
    assert one.read() is not None
    one.file.write_bytes(content.replace(b'\\"step\\": 3, \\"parts', b'\\"step\\": 4, \\"parts'))
    assert one.file.read_bytes() != content
    assert one.read() is None
    one.file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert one.read() is None


def test_a_checkpoint_of_another_job_is_none(tmp_path: Path) -> None:
    one, other = (checkpoint(fresh(tmp_path)) for _ in range(2))
    shutil.copy(one.file, other.file)
    assert one.read() is not None
    assert other.read() is None


# --- deltas, records, predictions ------------------------------------------------------------------------------------


def write_delta(folder: Path) -> None:
    state, plan = {"values/pos_embed": torch.tensor([1.0, 2.0])}, Plan(entries={"pos_embed": torch.tensor([7, 8])})
    about = {"base": BASE, "method": {"name": "shpeft", "version": 1, "fields": {}}, "classes": ["a", "é"]}
    delta.write(folder, plan, state, about)


@drawn
@given(st.data(), st.sampled_from(("delta.json", "delta.safetensors")))
def test_a_delta_is_whole_or_refused(home: Path, data: st.DataObject, name: str) -> None:
    folder = fresh(home)
    write_delta(folder)
    before = delta.read(folder, BASE)
    changed = damaged(data, folder / name)
    with or_refused(DeltaError, printable=False):
        after = delta.read(folder, BASE)
        assert name == "delta.json" or not changed
        assert same(after[1], before[1])
        assert after[2] == before[2]
    with or_refused(DeltaError, printable=False):
        assert delta.read_about(folder) == before[2]


def test_arrays_in_arrays_are_no_delta(tmp_path: Path) -> None:
    (tmp_path / "delta.json").write_text(200_000 * "[")
    with pytest.raises(DeltaError, match="Cannot read the delta"):
        delta.read_about(tmp_path)


def stored(home: Path) -> Result:
    here = Store(fresh(home))
    here.job("abc").path.mkdir(parents=True)
    arrays: dict[str, Any] = {"test/last/logits": np.zeros((2, 2), np.float32), "test/labels": np.array([0, 1])}
    arrays["test/groups"] = np.array([0, 1])
    job = here.job("abc")
    job.write_predictions(arrays)
    return Result(job.write_record(records.Fake().record().model_copy(update={"id": "abc"})), job.path)


@drawn
@given(st.data())
def test_a_record_is_whole_or_refused(home: Path, data: st.DataObject) -> None:
    result = stored(home)
    damaged(data, result.folder / "record.json")
    with or_refused(StoreError):
        assert Store(result.folder.parents[1]).job("abc").record() == result.record


@drawn
@given(st.data())
def test_predictions_are_whole_or_refused(home: Path, data: st.DataObject) -> None:
    result = stored(home)
    changed = damaged(data, result.folder / "predictions.npz")
    with or_refused(StoreError):
        assert result.predictions("last")[2] == (0, 1)
        assert not changed


# --- no code from files ----------------------------------------------------------------------------------------------

UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def opens_pickles(node: ast.AST) -> bool:
    """Whether a call may run code that a file holds."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    called = f"{ast.unparse(node.func.value)}.{node.func.attr}"
    shown = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called == "torch.load":
        return shown.get("weights_only") != "True"
    return (
        shown.get("allow_pickle", "False") != "False"
        or called.split(".", maxsplit=1)[0] in UNPICKLERS
        or "pickle" in node.func.attr
    )


def imports_unpicklers(node: ast.AST) -> bool:
    """All but `import pickle`, which the name of its error needs."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [f"from {node.module}"] if isinstance(node, ast.ImportFrom) else []
    return any(name.removeprefix("from ").split(".")[0] in UNPICKLERS and name != "pickle" for name in names)


def suspects(source: str) -> list[str]:
    return [ast.unparse(n) for n in ast.walk(ast.parse(source)) if opens_pickles(n) or imports_unpicklers(n)]


def test_a_pipe_in_place_of_predictions_does_not_block(tmp_path: Path) -> None:
    result = records.Fake("lora").write(tmp_path)
    (result.folder / "predictions.npz").unlink()
    os.mkfifo(result.folder / "predictions.npz")
    result = Result(result.record.model_copy(update={"files": {"predictions.npz": "0" * 64}}), result.folder)
    assert result.damage == "predictions.npz was changed after its record was written"
    assert not result.has_predictions


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "pickle.loads(b)",
        "pd.read_pickle(f)",
        "from pickle import load",
        "import joblib",
    ],
)
def test_what_would_run_a_file_is_recognised(source: str) -> None:
    assert suspects(source) == [source]


def test_nothing_in_the_package_unpickles() -> None:
    found = {str(f.relative_to(ROOT)): suspects(f.read_text()) for f in (ROOT / "peftbench").rglob("*.py")}
    assert found
    assert {name: lines for name, lines in found.items() if lines} == {}
