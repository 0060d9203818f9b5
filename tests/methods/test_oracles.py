"""The authors' own numbers: logits, loss, gradients, three SGD steps and merged weights, to 1e-9 in float64.

Every test applies a method's plan and trains it with peftbench's loop, on the network and the batch of a file that
was made with the method's original code. PEFTBENCH_TEST_ORACLES names the folder of these files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from peftbench.core.recipe import Recipe
from peftbench.data.batches import FeatureBatches
from peftbench.methods import _spt
from peftbench.methods._spt import Piece, WholeRule
from peftbench.methods.adaptformer import AdaptFormer
from peftbench.methods.bitfit import BitFit
from peftbench.methods.ft_att import FTAtt
from peftbench.methods.ft_ln import FTLN
from peftbench.methods.full import Full
from peftbench.methods.linear import Linear
from peftbench.methods.lora import LoRA
from peftbench.methods.spt_lora import LowRank, SPTLoRA
from peftbench.methods.ssf import SSF
from peftbench.methods.vpt_deep import VPTDeep
from peftbench.methods.vpt_shallow import VPTShallow
from peftbench.models.gradient_probe import GradientProbe
from peftbench.models.head import Classifier, Head
from peftbench.models.method import Method, NoProbe
from peftbench.models.plan import Tuned
from peftbench.training import loop
from peftbench.training.loop import Learner, Task, fit
from tests.networks import CLASSES, network

ROOT = Path(__file__).parents[2]
NEAR: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
THREE_STEPS = Recipe(
    "oracle", optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, batch=8, steps=3, warmup=0.0, evaluations=3
)
RUNS: list[tuple[str, str, Method]] = [
    ("full", "", Full()),
    ("linear", "", Linear()),
    ("bitfit", "", BitFit()),
    ("ft_ln", "", FTLN()),
    ("ft_att", "", FTAtt(train_pos_embed=True)),  # as the authors' code
    *(
        (name, scenario, method)
        for name, method in (
            ("vpt_shallow", VPTShallow()),
            ("vpt_deep", VPTDeep()),
            ("ssf", SSF()),
            ("adaptformer", AdaptFormer(bottleneck=8, dropout=0)),
            ("lora", LoRA(r=4, alpha=8)),
        )
        for scenario in ("init/", "rand/")
    ),
    ("adaptformer", "rand_bn/", AdaptFormer(bottleneck=8, dropout=0)),
]
# The authors' names -> peftbench's. SSF numbers its pairs by their place in a module.
NAMES: list[tuple[str, str]] = [
    (r"adaptmlp\.(down|up)_proj", r"\1"),
    (r"^prompt_embeddings", "blocks.0.prompt"),
    (r"^ssf_(scale|shift)_1", r"norm.\1"),
    (r"(patch_embed)\.ssf_(scale|shift)_1", r"\1.proj.\2"),
    (r"attn\.ssf_(scale|shift)_1", r"attn.qkv.\1"),
    (r"attn\.ssf_(scale|shift)_2", r"attn.proj.\1"),
    (r"mlp\.ssf_(scale|shift)_(\d)", r"mlp.fc\2.\1"),
    (r"(blocks\.\d)\.ssf_(scale|shift)_(\d)", r"\1.norm\3.\2"),
]


@dataclass(frozen=True)
class Oracle:
    """One file, or one scenario of it."""

    arrays: Mapping[str, NDArray[np.generic]]
    scenario: str

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[self.scenario + key]))

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of a group by peftbench's names."""
        names = [name for name in self.arrays if name.startswith(self.scenario + prefix)]
        found = {n.removeprefix(self.scenario + prefix): torch.from_numpy(np.asarray(self.arrays[n])) for n in names}
        deep = found.pop("deep_prompt_embeddings", torch.empty(0))  # (blocks - 1, tokens, width)
        return {own(n): t for n, t in found.items()} | {
            f"blocks.{i}.prompt": t[None] for i, t in enumerate(deep, start=1)
        }

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(np.asarray(self.arrays["x"])), torch.from_numpy(np.asarray(self.arrays["y"]))

    def model(self) -> Classifier:
        """The network and the head that the file starts from."""
        given = {
            n.removeprefix("base/"): torch.from_numpy(np.asarray(self.arrays[n]))
            for n in self.arrays
            if n[:5] == "base/"
        }
        kind = "batchnorm" if "bn" in self.scenario else "plain"
        model = Classifier(network(), Head(32, CLASSES, kind, 1.0, seed=0).double())
        model.vit.load_state_dict({n: t for n, t in given.items() if not n.startswith("head.")})
        model.head.linear.load_state_dict({n[5:]: t for n, t in given.items() if n.startswith("head.")})
        return model


def oracle_file(name: str) -> Path:
    folder = Path(os.environ.get("PEFTBENCH_TEST_ORACLES") or ROOT / "../shared/oracles")
    if not (folder / name).is_file():
        pytest.skip(f"no {name} in {folder}; PEFTBENCH_TEST_ORACLES names another folder")
    return folder / name


def oracle(name: str, scenario: str = "") -> Oracle:
    with np.load(oracle_file(f"{name}.npz"), allow_pickle=False) as stored:
        return Oracle(dict(stored), scenario)


@dataclass(frozen=True)
class Trainee:
    """A method carried out on an oracle's network, its added tensors as the oracle gives them."""

    model: Classifier
    tuned: Tuned

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What trains, under the oracle's names."""
        head = {f"head.{n}": p for n, p in self.model.head.linear.named_parameters()}
        return {plain(name): tensor for name, tensor in self.tuned.tensors.items()} | head


def own(name: str) -> str:
    """Return the name of the graft's tensor for a name of the authors."""
    for pattern, place in NAMES:
        name, changes = re.subn(pattern, place, name)
        if changes:
            break
    return name


def plain(name: str) -> str:
    """tune/NAME -> NAME; graft/SITE/base.lora_A.default.weight -> SITE.lora_A.weight."""
    kind, _, rest = name.partition("/")
    return rest if kind == "tune" else rest.replace("/base.", ".").replace("/", ".").replace(".default.", ".")


def carry_out(method: Method, given: Oracle) -> Trainee:
    model = given.model()
    trainee = Trainee(model, method.plan(model.vit, NoProbe()).carry_out(model.vit))
    with torch.no_grad():
        for name, tensor in given.under("init/").items():
            trainee.tensors[name].copy_(tensor)
    return trainee


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].detach(), tensor, **NEAR, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize(("file", "scenario", "method"), RUNS, ids=lambda value: str(value) or None)
def test_logits_loss_and_gradients(file: str, scenario: str, method: Method) -> None:
    given = oracle(file, scenario)
    trainee = carry_out(method, given)
    x, y = given.batch
    logits = trainee.model.train()(x)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    assert_near({"logits": logits, "loss": loss}, {"logits": given["logits"], "loss": given["loss"]})
    assert_near({n: t.grad for n, t in trainee.tensors.items() if t.grad is not None}, given.under("grad/"))


@pytest.mark.parametrize(("file", "scenario", "method"), RUNS, ids=lambda value: str(value) or None)
def test_three_steps(file: str, scenario: str, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda _step, recipe: recipe.lr)  # theirs was constant
    given = oracle(file, scenario)
    trainee = carry_out(method, given)
    x, y = given.batch
    learner = Learner(trainee.model, trainee.tensors)
    progress = fit(
        learner, Task(FeatureBatches(x), y, {"test": (FeatureBatches(x), y.numpy())}, CLASSES), THREE_STEPS, seed=0
    )
    assert_near(trainee.tensors, given.under("after3/"))
    trajectory = torch.tensor([row["train_loss"] for row in progress.curve], dtype=torch.float64)
    logits = trainee.model(x)  # in training mode still, which differs where a batch is normalized
    assert_near(
        {"losses": trajectory, "last loss": F.cross_entropy(logits, y), "logits": logits},
        {"losses": given["loss_traj"][:3], "last loss": given["loss_traj"][3], "logits": given["logits_after3"]},
    )


def test_the_batch_norm_head_of_adaptformer_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch statistics train, running ones are used afterwards."""
    monkeypatch.setattr(loop, "learning_rate", lambda _step, recipe: recipe.lr)
    given = oracle("adaptformer", "rand_bn/")
    trainee = carry_out(AdaptFormer(bottleneck=8, dropout=0), given)
    x, y = given.batch
    trainee.model.train()(x)  # theirs computed the first logits apart from the steps, and the last loss
    fit(Learner(trainee.model, trainee.tensors), Task(FeatureBatches(x), y, {}, CLASSES), THREE_STEPS, seed=0)
    trainee.model.train()(x)
    norm = trainee.model.head.norm.state_dict()
    assert_near(
        {"mean": norm["running_mean"], "var": norm["running_var"], "logits": trainee.model.eval()(x)},
        {"mean": given["bn_running_mean"], "var": given["bn_running_var"], "logits": given["logits_after3_evalmode"]},
    )


@pytest.mark.parametrize(("file", "scenario", "method"), RUNS, ids=lambda value: str(value) or None)
def test_as_much_trains_as_in_the_original(file: str, scenario: str, method: Method) -> None:
    given = oracle(file, scenario)
    assert method.plan(given.model().vit, NoProbe()).count(given.model().vit) == int(
        given.arrays["n_trainable_no_head"]
    )
    trainee = carry_out(method, given)
    assert sum(p.numel() for p in trainee.model.parameters() if p.requires_grad) == int(given.arrays["n_trainable"])


@pytest.mark.parametrize(
    ("file", "scenario", "method"), [("lora", "rand/", LoRA(r=4, alpha=8)), ("ssf", "init/", SSF())]
)
def test_merged_weights_are_theirs(file: str, scenario: str, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda _step, recipe: recipe.lr)
    given = oracle(file, scenario)
    trainee = carry_out(method, given)
    x, y = given.batch
    fit(Learner(trainee.model, trainee.tensors), Task(FeatureBatches(x), y, {}, CLASSES), THREE_STEPS, seed=0)
    assert trainee.tuned.merge()
    head = {f"head.{n}": t for n, t in trainee.model.head.linear.state_dict().items()}
    assert_near({**trainee.model.vit.state_dict(), **head}, given.under("merged_after3/"))


def test_the_bare_network_is_that_of_the_oracles() -> None:
    base, full = oracle("base"), oracle("full")
    x, _ = base.batch
    assert sum(p.numel() for p in base.model().parameters()) == 32_323
    with torch.no_grad():
        assert_near({"logits": base.model().eval()(x)}, {"logits": full["logits"]})


def test_the_probe_sums_the_squares_that_spt_sums() -> None:
    """Its own code, with q, k and v in tensors of their own, on the four selection batches."""
    base, spt = oracle("base"), oracle("spt_sensitivity")
    pairs = [(base[f"sel/x{i}"], base[f"sel/y{i}"]) for i in range(4)]
    even, odd = GradientProbe(base.model(), lambda: iter(pairs), F.cross_entropy).estimate("squares")
    found: dict[str, Tensor] = {}
    for name in even:
        letters = ("q", "k", "v") if "attn.qkv" in name else ("qkv",)
        parts = (even[name] + odd[name]).chunk(len(letters))
        found |= {name.replace("attn.qkv", f"attn.{letter}"): part for letter, part in zip(letters, parts, strict=True)}
    assert_near(found, {n: t for n, t in spt.under("sens/").items() if not n.startswith("head.")})


# --- SPT's choice: its own code on the four selection batches, with 5,000 for a million so that its sweep fits --------

SETTINGS = {
    "r2_alpha10_beta5_vec": WholeRule(2, 10, 5),
    "r2_alpha1_beta5_vec": WholeRule(2, 1, 5),
    "r2_alpha10_beta5_novec": WholeRule(2, 10, 0),
    "r4_alpha10_beta5_vec": WholeRule(4, 10, 5),
}


def theirs(piece: Piece) -> str:
    return piece.name.replace("qkv", piece.part) if piece.part else piece.name


@pytest.mark.parametrize("setting", SETTINGS)
def test_spt_trades_sensitive_weights_for_whole_tensors_as_the_original(setting: str) -> None:
    spt, rule, among = oracle("spt_sensitivity"), SETTINGS[setting], _spt.pieces(network())
    assert [theirs(piece) for piece in among] == spt.arrays["candidate_keys"].tolist()
    ranking = _spt.rank(among, (spt[f"sens/{theirs(piece)}"].flatten() for piece in among), 7900)
    for k in (100, 200, 300, 400, 600, 800, 1000, 1600, 2400, 4000, 7900):
        here = f"{setting}/topk{k}/"
        counts = ranking.counts(k)
        assert counts == spt.arrays[here + "counts"].tolist()
        mask = np.unpackbits(np.asarray(spt.arrays[here + "mask_flat"], dtype=np.uint8))
        assert torch.equal(ranking.index[:k].sort().values, torch.from_numpy(mask.nonzero()[0]))
        whole = {theirs(p): len(p.shape) for p, c in zip(among, counts, strict=True) if rule.whole(p, c)}
        assert {n for n, d in whole.items() if d == 2} == set(spt.arrays[here + "structured_names"].tolist())
        assert {n for n, d in whole.items() if d == 1} == set(spt.arrays[here + "tuned_vectors"].tolist())
        parts = spt.arrays[here + "n_structured"], spt.arrays[here + "n_unstructured"]
        assert rule.spent(among, counts) == sum(int(part) for part in parts)


@pytest.mark.parametrize("budget", ["0.05", "0.1", "0.2", "0.4", "0.6", "0.8", "1.0"])
def test_spt_spends_a_budget_as_the_original(budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_spt, "unit", lambda _budget: 5000)
    base, spt, here = oracle("base"), oracle("spt_sensitivity"), f"budget{budget}/"
    pairs = [(base[f"sel/x{i}"], base[f"sel/y{i}"]) for i in range(4)]
    model = base.model()
    fitted = SPTLoRA(r=2).within(round(float(budget) * 5000), model.vit)
    plan = fitted.method.plan(model.vit, GradientProbe(model, lambda: iter(pairs), F.cross_entropy))

    operations = ("attn.qkv/q", "attn.qkv/k", "attn.qkv/v", "attn.proj/", "mlp.fc1/", "mlp.fc2/")
    matrices = np.asarray(spt.arrays[here + "tuned_matrices"])
    found = {f"{site}/{part}" for site, (_, sizes) in plan.grafts.items() for part in str(sizes["parts"]) or [""]}
    assert found == {f"blocks.{i}.{operations[j]}" for i, j in zip(*matrices.nonzero(), strict=True)}

    trained: dict[str, list[int]] = {}  # entry by entry, under their names
    for piece in _spt.pieces(model.vit):
        index = plan.entries.get(piece.name, torch.arange(0))
        index = index[(index >= piece.start) & (index < piece.start + piece.size)] - piece.start
        trained[theirs(piece)] = list(range(piece.size)) if piece.name in plan.tune else index.tolist()
    sizes = dict(zip(spt.arrays["candidate_keys"].tolist(), spt.arrays["candidate_sizes"].tolist(), strict=True))
    vectors = set(spt.arrays[here + "tuned_vectors"].tolist())
    assert vectors <= {name for name, index in trained.items() if len(index) == sizes[name]}
    places, start = spt[here + "unstructured_indexes"], 0
    for name in spt.arrays[here + "unstructured_keys"].tolist():
        counted = (places[(places >= start) & (places < start + sizes[name])] - start).tolist()
        assert trained[name] == ([] if "norm" in name else counted)  # theirs never trains single entries of norms
        start += sizes[name]
    assert plan.count(model.vit) == sum(map(len, trained.values())) + 32 + sum(
        2 * (32 + 32 if "attn" in name else 32 + 128) for name in found
    )


def test_the_authors_released_files_cost_what_we_count() -> None:
    """42 choices of theirs for ViT-B/16: so many low-rank matrices of each kind, whole vectors and single weights."""
    files = json.loads(oracle_file("counts_spt_shipped.json").read_text())
    assert len(files) == 42
    with torch.device("meta"):
        layers = {shape: torch.nn.Linear(*shape) for shape in ((768, 2304), (768, 768), (768, 3072), (3072, 768))}
    part = LowRank.size(layers[768, 2304], r=8, parts="q")
    costs = (part, part, part, *(LowRank.size(layers[shape], r=8, parts="") for shape in list(layers)[1:]))
    for file in files.values():
        products = sum(cost * matrices for cost, matrices in zip(costs, file["per_op_qkvproj_fc1_fc2"], strict=True))
        assert products == file["lora_params"]
        whole = file["structured"] - products
        assert products + whole + file["sparse_params"] + 768 == file["actual_no_head"]
