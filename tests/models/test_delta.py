"""Deltas: written, restored, and refused if they do not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftbench.errors import DeltaError, UnknownNameError
from peftbench.methods.bitfit import BitFit
from peftbench.methods.full import Full
from peftbench.methods.linear import Linear
from peftbench.methods.lora import LoRA
from peftbench.models import delta
from peftbench.models.method import NoProbe
from peftbench.models.plan import Plan, Tuned
from tests.networks import STYLES, batch, classifier, network

BASE = "ab" * 32
ENTRIES = Plan(
    entries={
        "blocks.0.attn.qkv.weight": torch.tensor([0, 5, 3071]),
        "blocks.0.attn.qkv.bias": torch.tensor([1]),
        "pos_embed": torch.tensor([7, 8]),
    }
)
PLANS: dict[str, Callable[[torch.nn.Module], Plan]] = {
    "full": lambda vit: Full().plan(vit, NoProbe()),
    "bitfit": lambda vit: BitFit().plan(vit, NoProbe()),
    "linear": lambda vit: Linear().plan(vit, NoProbe()),
    "lora": lambda vit: LoRA(r=2, sites=("qkv", "fc1")).plan(vit, NoProbe()),
    "shpeft": lambda _: ENTRIES,
}


def about(method: str = "lora") -> dict[str, Any]:
    return {"base": BASE, "method": {"name": method, "version": 1, "fields": {}}}


def save(folder: Path, method: str = "lora", style: str = "plain") -> tuple[Tensor, int]:
    """Train-like changes to a network with head, written down; returns its logits and the bytes written."""
    model = classifier(style)
    tuned = PLANS[method](model.vit).carry_out(model.vit)
    head = {f"head/{name}": tensor for name, tensor in model.head.state_dict(keep_vars=True).items()}
    tensors: dict[str, Tensor] = {**tuned.tensors, **head}
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(0.3 * torch.randn_like(tensor))
    size = delta.write(folder, tuned.plan, {n: t.detach() for n, t in tensors.items()}, about(method))
    return model.eval()(batch()[0]), size


def restore(folder: Path, style: str = "plain") -> Tensor:
    model = classifier(style)
    _, head = delta.restore(model.vit, folder, BASE)
    model.head.load_state_dict(head, strict=True)
    logits: Tensor = model.eval()(batch()[0])
    return logits


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Change a delta and update its digests."""
    facts, tensors = json.loads((folder / "delta.json").read_text()), load_file(folder / "delta.safetensors")
    change(facts, tensors)
    save_file(tensors, folder / "delta.safetensors", {"about": delta._seal(facts)})
    facts["sha256"] = hashlib.sha256((folder / "delta.safetensors").read_bytes()).hexdigest()
    (folder / "delta.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("method", PLANS)
def test_a_restored_network_gives_equal_logits(method: str, tmp_path: Path) -> None:
    logits, _ = save(tmp_path, method)
    assert torch.equal(restore(tmp_path), logits)
    assert not torch.allclose(classifier().eval()(batch()[0]), logits, atol=1e-3)


@pytest.mark.parametrize("style", STYLES)
def test_every_kind_of_network(style: str, tmp_path: Path) -> None:
    logits, _ = save(tmp_path, "lora", style)
    assert torch.equal(restore(tmp_path, style), logits)


def test_restoring_draws_no_random_number(tmp_path: Path) -> None:
    save(tmp_path)
    vit = network()
    before = torch.get_rng_state()
    delta.restore(vit, tmp_path, BASE)
    assert torch.equal(before, torch.get_rng_state())


def test_a_restored_plan_is_the_plan(tmp_path: Path) -> None:
    save(tmp_path, "shpeft")
    plan, tensors, facts = delta.read(tmp_path, BASE)
    assert {n: i.tolist() for n, i in plan.entries.items()} == {n: i.tolist() for n, i in ENTRIES.entries.items()}
    assert {name for name in tensors if not name.startswith("head/")} == {f"values/{name}" for name in ENTRIES.entries}
    assert facts["method"]["name"] == "shpeft"
    save(tmp_path, "lora")
    assert delta.read(tmp_path, BASE)[0] == PLANS["lora"](network())


def test_a_delta_holds_an_int32_place_and_a_value_for_each_entry(tmp_path: Path) -> None:
    _, size = save(tmp_path, "shpeft")
    stored: Mapping[str, Tensor] = load_file(tmp_path / "delta.safetensors")
    assert {t.dtype for n, t in stored.items() if n.startswith("index/")} == {torch.int32}
    assert sum(t.numel() for n, t in stored.items() if n.startswith("values/")) == 6
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert {file.name for file in tmp_path.iterdir()} == {"delta.safetensors", "delta.json"}


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(DeltaError, match="was made for the weights abababababab, not for cdcdcdcdcdcd"):
        delta.restore(network(), tmp_path, "cd" * 32)


@pytest.mark.parametrize("file", ["delta.json", "delta.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\x80\x04K\x01.", None])
def test_damaged_files_are_refused(tmp_path: Path, file: str, content: bytes | None) -> None:
    save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DeltaError, match=str(tmp_path)):
        delta.restore(network(), tmp_path, BASE)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(tmp_path)
    content = bytearray((tmp_path / "delta.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "delta.safetensors").write_bytes(content)
    with pytest.raises(DeltaError, match="is damaged"):
        delta.restore(network(), tmp_path, BASE)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match="Cannot read the delta"):
        delta.restore(network(), tmp_path, BASE)


def test_a_changed_word_is_seen(tmp_path: Path) -> None:
    save(tmp_path)
    facts = json.loads((tmp_path / "delta.json").read_text())
    facts["grafts"]["blocks.0.attn.qkv"]["sizes"]["alpha"] = 80  # of the same shape, so that only the digest differs
    (tmp_path / "delta.json").write_text(json.dumps(facts))
    with pytest.raises(DeltaError, match=r"delta.json was modified"):
        restore(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    rewrite(tmp_path, lambda facts, _: facts.update(format=99))
    with pytest.raises(DeltaError, match="has the format 99; this version of peftbench reads 2"):
        delta.restore(network(), tmp_path, BASE)


def test_a_graft_of_a_missing_package_is_named(tmp_path: Path) -> None:
    save(tmp_path)
    rewrite(tmp_path, lambda facts, _: facts["grafts"]["blocks.0.attn.qkv"].update(kind="elsewhere:Graft"))
    with pytest.raises(DeltaError, match="needs 'elsewhere:Graft', which no installed method provides"):
        delta.restore(network(), tmp_path, BASE)


def test_a_method_that_is_not_installed_is_named(tmp_path: Path) -> None:
    save(tmp_path)
    rewrite(tmp_path, lambda facts, _: facts["method"].update(name="lore"))
    with pytest.raises(UnknownNameError, match=r"No method is called 'lore'\. Did you mean"):
        delta.restore(network(), tmp_path, BASE)


LORA_A = "graft/blocks.0.attn.qkv/base.lora_A.default.weight"


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("lora", lambda _, tensors: tensors.pop(LORA_A)),
        ("lora", lambda _, tensors: tensors.update({LORA_A: torch.zeros(3, 32)})),
        ("lora", lambda facts, _: facts["grafts"]["blocks.0.attn.qkv"]["sizes"].update(unheard=1)),
        ("lora", lambda facts, _: facts["grafts"].update({"blocks.7": facts["grafts"]["blocks.0.attn.qkv"]})),
        ("shpeft", lambda _, tensors: tensors.pop("values/pos_embed")),
        ("shpeft", lambda _, tensors: tensors.pop("index/pos_embed")),
        ("shpeft", lambda _, tensors: tensors.update({"values/pos_embed": torch.zeros(5)})),
        ("shpeft", lambda _, tensors: tensors["index/pos_embed"].fill_(10**6)),
        ("full", lambda _, tensors: tensors.update({"tune/strange": torch.zeros(1)})),
    ],
)
def test_what_does_not_fit_the_network_is_refused(method: str, change: Any, tmp_path: Path) -> None:
    save(tmp_path, method)
    rewrite(tmp_path, change)
    with pytest.raises(DeltaError):
        delta.restore(network(), tmp_path, BASE)


def test_restoring_hands_back_what_can_go_on_training(tmp_path: Path) -> None:
    save(tmp_path, "bitfit")
    tuned, _ = delta.restore(network(), tmp_path, BASE)
    assert isinstance(tuned, Tuned)
    assert tuned.plan.tune == BitFit().plan(network(), NoProbe()).tune


def test_one_tensor_at_a_time_can_be_read(tmp_path: Path) -> None:
    save(tmp_path, "full")
    stored = load_file(tmp_path / "delta.safetensors")
    with delta.open_tuned(tmp_path, BASE) as read:
        assert torch.equal(read("tune/norm.weight"), stored["tune/norm.weight"])
        assert torch.equal(read("head/linear.bias"), stored["head/linear.bias"])
        with pytest.raises(DeltaError, match=r"holds no tensor tune/nothing\."):
            read("tune/nothing")
    with pytest.raises(DeltaError, match="was made for the weights"), delta.open_tuned(tmp_path, "cd" * 32):
        pass
