"""Hugging Face peft's tuners: equal to peft on the same network, counted, sized, refused where they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any, cast

import peft
import pytest
import torch
from torch import Tensor, nn

from peftbench.errors import RequestError
from peftbench.methods._fields import SiteName
from peftbench.methods._hub import UNFIT, HubMethod
from peftbench.methods.adalora import AdaLoRA
from peftbench.methods.boft import BOFT
from peftbench.methods.c3a import C3A
from peftbench.methods.deft import DEFT
from peftbench.methods.delora import DeLoRA
from peftbench.methods.dora import DoRA
from peftbench.methods.fourierft import FourierFT
from peftbench.methods.glora import GLoRA
from peftbench.methods.gralora import GraLoRA
from peftbench.methods.hira import HiRA
from peftbench.methods.hra import HRA
from peftbench.methods.ia3 import IA3
from peftbench.methods.loha import LoHa
from peftbench.methods.lokr import LoKr
from peftbench.methods.miss import MiSS
from peftbench.methods.oft import OFT
from peftbench.methods.peanut import PEANuT
from peftbench.methods.pissa import PiSSA
from peftbench.methods.psoft import PSOFT
from peftbench.methods.pvera import PVeRA
from peftbench.methods.randlora import RandLoRA
from peftbench.methods.road import RoAd
from peftbench.methods.rslora import RsLoRA
from peftbench.methods.shira import SHiRA
from peftbench.methods.tinylora import TinyLoRA
from peftbench.methods.vblora import VBLoRA
from peftbench.methods.vera import VeRA
from peftbench.methods.waveft import WaveFT
from peftbench.models.method import NoProbe
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Tuned
from tests.networks import batch, blank, network

TWO: tuple[SiteName, ...] = ("qkv", "fc2")  # (96, 32) and (32, 128): what is shared must fit both
SIZE = 96 * 32 / 768**2  # of the small network's qkv as a share of what scales are meant for
PEERS: list[
    tuple[HubMethod, str, dict[str, Any]]
] = [  # a method of peftbench, and the equivalent kind and options of peft
    (DoRA(r=3, alpha=5, sites=TWO), "LORA", {"r": 3, "lora_alpha": 5, "use_dora": True}),
    (RsLoRA(r=3, alpha=5, sites=TWO), "LORA", {"r": 3, "lora_alpha": 5, "use_rslora": True}),
    (AdaLoRA(r=4, alpha=5, sites=TWO), "ADALORA", {"init_r": 6, "target_r": 4, "lora_alpha": 5, "total_step": 9}),
    (VeRA(r=7, d=0.3, key=5, sites=TWO), "VERA", {"r": 7, "d_initial": 0.3, "projection_prng_key": 5}),
    (PVeRA(r=7, sites=TWO), "PVERA", {"r": 7}),
    (LoHa(r=3, alpha=5, sites=TWO), "LOHA", {"r": 3, "alpha": 5}),
    (LoKr(r=3, alpha=5, factor=4, sites=TWO), "LOKR", {"r": 3, "alpha": 5, "decompose_factor": 4}),
    (LoKr(r=60, alpha=5, factor=-1), "LOKR", {"r": 60, "alpha": 5}),
    (OFT(block=8, sites=TWO), "OFT", {"oft_block_size": 8}),
    (BOFT(block=8, sites=TWO), "BOFT", {"boft_block_size": 8}),
    (HRA(r=4, sites=TWO), "HRA", {"r": 4}),
    (IA3(), "IA3", {"feedforward_modules": ["mlp.fc2"]}),
    (FourierFT(n=40, scale=90.0, key=3), "FOURIERFT", {"n_frequency": 40, "scaling": 90 * SIZE, "random_loc_seed": 3}),
    (WaveFT(n=40, key=3), "WAVEFT", {"n_frequency": 40, "scaling": 25 * SIZE**0.5, "random_loc_seed": 3}),
    (SHiRA(r=3, sites=TWO), "SHIRA", {"r": 3}),
    (RandLoRA(r=5, scale=2.0, key=5, sites=TWO), "RANDLORA", {"r": 5, "randlora_alpha": 10, "projection_prng_key": 5}),
    (DeLoRA(r=3, length=4, sites=TWO), "DELORA", {"r": 3, "delora_lambda": 4}),
    (GraLoRA(r=4, alpha=6, cells=4, sites=TWO), "GRALORA", {"r": 4, "alpha": 6, "gralora_k": 4}),
    (C3A(block=8, sites=TWO), "C3A", {"block_size": 8}),
    (MiSS(r=5, sites=TWO), "MISS", {"r": 5}),
    (VBLoRA(r=2, vectors=9, length=16, sites=TWO), "VBLORA", {"r": 2, "num_vectors": 9, "vector_length": 16}),
    (RoAd(variant=1, group=8, sites=TWO), "ROAD", {"variant": "road_1", "group_size": 8}),
    (RoAd(variant=4, group=8), "ROAD", {"variant": "road_4", "group_size": 8}),
    (GLoRA(r=3, sites=TWO), "GLORA", {"r": 3}),
    (HiRA(r=3, sites=TWO), "HIRA", {"r": 3}),
    (PEANuT(r=3, depth=1, sites=TWO), "PEANUT", {"r": 3, "depth": 1}),
    (TinyLoRA(u=6, r=3, sites=TWO), "TINYLORA", {"u": 6, "r": 3}),
    (DEFT(r=3, sites=TWO), "DEFT", {"r": 3}),
    (DEFT(r=3, decomposition="qr"), "DEFT", {"r": 3, "decomposition_method": "qr"}),
    (PSOFT(r=4, sites=TWO), "PSOFT", {"r": 4, "psoft_alpha": 4}),
]
SINGLE = (C3A, DEFT, FourierFT, PSOFT, TinyLoRA)  # peft itself computes these, or their first values, in 32 bits
MODULES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
here = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore:Sparse invariant checks:UserWarning")


def own(method: HubMethod, dtype: torch.dtype) -> tuple[nn.Module, Tuned]:
    vit = network(dtype=dtype)
    torch.manual_seed(0)
    return vit.train(), method.plan(vit, NoProbe()).carry_out(vit)


def theirs(method: HubMethod, kind: str, options: dict[str, Any], dtype: torch.dtype) -> Any:
    make: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[kind]]
    vit: Any = network(dtype=dtype)
    torch.manual_seed(1)
    return peft.get_peft_model(vit, make(target_modules=[MODULES[site] for site in method.sites], **options)).train()


def trained(vit: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by peft's names: peft's model has a layer where the network has an adapter around it."""
    free = [(n.replace(".base.", "."), p) for n, p in vit.named_parameters() if p.requires_grad]
    if "tinylora" not in free[0][0]:
        return dict(free)
    return {
        f"blocks.0.attn.qkv.tinylora_v.default.{i}": p for i, (_, p) in enumerate(free)
    }  # which peft keeps together


def stir(vit: nn.Module, peer: Any) -> None:
    """Add the same noise to both."""
    twins = dict(peer.base_model.model.named_parameters())
    for name, parameter in trained(vit).items():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
            twins[name].copy_(parameter)


def same_places(vit: nn.Module, peer: Any) -> None:
    """SHiRA's places are the job's, and peft's default heeds no seed."""
    for name, module in peer.base_model.model.named_modules():
        if hasattr(module, "shira_indices"):
            module.shira_indices["default"] = vit.get_buffer(f"{name}.places")


@here
@pytest.mark.filterwarnings("ignore:Specified to not save")
@pytest.mark.parametrize(("method", "kind", "options"), PEERS, ids=[f"{m.name}-{i}" for i, (m, *_) in enumerate(PEERS)])
def test_forward_and_gradients_equal_pefts_own(method: HubMethod, kind: str, options: dict[str, Any]) -> None:
    if kind not in peft.PeftType.__members__:
        pytest.skip(f"peft {peft.__version__} has no {kind}")
    dtype = torch.float32 if isinstance(method, PSOFT) else torch.float64
    near: dict[str, Any] = {"rtol": 0, "atol": 1e-5 if isinstance(method, SINGLE) else 1e-9}
    (vit, _), peer = own(method, dtype), theirs(method, kind, options, dtype)
    assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == method.count(network())
    stir(vit, peer)
    same_places(vit, peer)
    x = batch(dtype=dtype)[0]
    outs = []
    for net in (vit, peer):
        torch.manual_seed(7)  # PVeRA draws
        outs.append(net(x))
        outs[-1].square().mean().backward()
    torch.testing.assert_close(outs[0], outs[1], **near)
    assert not torch.allclose(outs[0], network(dtype=dtype)(x), atol=1e-4)
    twins = dict(peer.base_model.model.named_parameters())
    for name, parameter in trained(vit).items():
        torch.testing.assert_close(parameter.grad, twins[name].grad, **near)
    extra = {n for n, p in twins.items() if p.requires_grad} - trained(vit).keys()
    assert all("ranknum" in name for name in extra)  # which peft sets free by mistake when it changes the precision


@here
def test_pissa_equals_pefts_with_its_residual() -> None:
    (vit, tuned), peer = (
        own(PiSSA(r=3), torch.float32),
        theirs(PiSSA(r=3), "LORA", {"r": 3, "lora_alpha": 3, "init_lora_weights": "pissa"}, torch.float32),
    )
    site = "blocks.0.attn.qkv"
    residual = tuned.tensors[f"graft/{site}/up"] @ tuned.tensors[f"graft/{site}/down"]
    weight = network(dtype=torch.float32).get_parameter(f"{site}.weight")
    rewritten = peer.base_model.model.get_parameter(f"{site}.base_layer.weight")
    torch.testing.assert_close(weight - residual, rewritten, rtol=0, atol=1e-6)
    assert torch.equal(vit.get_parameter(f"{site}.base.base_layer.weight"), weight)
    stir(vit, peer)
    x = batch(dtype=torch.float32)[0]
    torch.testing.assert_close(vit(x), peer(x), rtol=0, atol=1e-5)


@lru_cache
def vit_b() -> nn.Module:
    return blank("vit_base_patch16_224")


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (DoRA(), 8 * 36_864 + 27_648),
        (RsLoRA(), 8 * 36_864),
        (PiSSA(), 8 * 36_864),
        (AdaLoRA(), 12 * 36_876),
        (VeRA(), 27_648 + 12 * 256),
        (PVeRA(), 27_648 + 24 * 256),
        (LoHa(), 8 * 73_728),
        (LoKr(), 768 + 8 * 4_608),
        (OFT(), 31 * 4_608),
        (BOFT(), 4 * 9_216 + 27_648),
        (HRA(), 8 * 9_216),
        (IA3(), 64_512),
        (FourierFT(), 12_000),
        (WaveFT(), 12_000),
        (SHiRA(), 8 * 36_864),
        (RandLoRA(), 12 * 800 * 24),
        (DeLoRA(), 8 * 36_864 + 12),
        (GraLoRA(), 8 * 36_864),
        (C3A(), 21_233_664 // 32),
        (MiSS(), 8 * 27_648),
        (VBLoRA(), (1_152 * 4 + 32) * 256),
        (RoAd(), 27_648),
        (GLoRA(), 82_956 * 8 + 24),
        (HiRA(), 8 * 36_864),
        (PEANuT(), 8 * 55_296),
        (TinyLoRA(), 12 * 64),
        (DEFT(), 8 * 36_864),
        (PSOFT(), 6 * 32 * 35),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_counts_and_budgets_on_vit_b(method: HubMethod, count: int) -> None:
    """Counts as in the catalogue; the nearest size is found, also where sizes are divisors or larger ones cost less."""
    vit = vit_b()
    assert method.count(vit) == count
    if method.knob is None:
        return
    sizes = method.sizes(vit)
    for value in (sizes[0], sizes[len(sizes) // 3], sizes[-1]):
        reached = method.at_size(value).count(vit)
        fit = method.within(reached, vit)
        assert (fit.reached, fit.edge, fit.method.count(vit)) == (reached, None, reached)
    assert method.within(0, vit).edge == "floor"
    assert method.within(10**9, vit).edge == "ceiling"


def test_where_sizes_are_divisors_the_nearest_is_taken() -> None:
    """4,608 (block - 1): block 48 gives 216,576, block 64 gives 290,304."""
    vit = vit_b()
    assert OFT().within(253_000, vit).method == OFT(block=48)
    assert OFT().within(254_000, vit).method == OFT(block=64)


def test_randlora_costs_less_the_larger_its_rank() -> None:
    vit = vit_b()
    floor, ceiling = RandLoRA().within(1, vit), RandLoRA().within(10**9, vit)
    assert (floor.reached, ceiling.method) == (12 * 2 * 768, RandLoRA(r=1))


# --- what is random, what is kept -----------------------------------------------------------------------------------


def test_projections_come_from_their_key_and_are_not_saved() -> None:
    for method, change in ((VeRA(r=4), VeRA(r=4, key=1)), (RandLoRA(r=8), RandLoRA(r=8, key=1))):
        (one, tuned), (other, _), (changed, _) = (own(m, torch.float64) for m in (method, method, change))
        drawn = {n: b for n, b in one.named_buffers() if n.endswith(("_A.default", "_B.default"))}
        assert len(drawn) == 2, "all sites share them"
        assert all(torch.equal(other.get_buffer(n), b) for n, b in drawn.items())
        assert not any(torch.equal(changed.get_buffer(n), b) for n, b in drawn.items())
        assert not {name for name, tensor in tuned.tensors.items() if not tensor.requires_grad}


def test_vectors_of_a_bank_are_shared_and_counted_once() -> None:
    vit, tuned = own(VBLoRA(vectors=5), torch.float64)
    bank = tuned.tensors["shared/vblora/vblora_vector_bank.default"]
    assert bank.shape == (5, 32)
    assert sum(p is bank for p in vit.parameters()) == 1
    layers: list[Any] = [vit.get_submodule(f"blocks.{i}.attn.qkv.base") for i in (0, 1)]
    assert all(layer.vblora_vector_bank["default"] is bank for layer in layers)


def test_shiras_places_come_from_the_jobs_seed() -> None:
    def places(seed: int) -> Tensor:
        vit = network()
        torch.manual_seed(seed)
        SHiRA(r=1).plan(vit, NoProbe()).carry_out(vit)
        return torch.cat([vit.get_buffer(f"blocks.{i}.attn.qkv.places") for i in (0, 1)])

    assert torch.equal(places(1), places(1))
    assert not torch.equal(places(1), places(2))
    assert not torch.equal(*places(1).chunk(2))


# --- AdaLoRA's schedule ---------------------------------------------------------------------------------------------


SCHEDULE = AdaLoRA(r=2, warmup=0.2, final=0.3, every=2)
STEPS = 10  # steps 3 to 6 drop ranks


def ada() -> tuple[nn.Module, Tuned, torch.optim.Optimizer]:
    vit, tuned = own(SCHEDULE, torch.float64)
    return vit, tuned, torch.optim.SGD(trained(vit).values(), lr=0.05, momentum=0.9)


def go(vit: nn.Module, optimizer: torch.optim.Optimizer, start: int, penalty: Any, after: Callable[[int], Any]) -> None:
    for step in range(start, STEPS):
        x, y = batch(4, seed=step)
        loss = nn.functional.cross_entropy(vit(x)[:, :3], y) + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(step)


@here
def test_adalora_drops_the_ranks_that_peft_drops() -> None:
    """From 3 a site to 2 on average; scores, schedule, choice and the pull toward orthonormal directions."""
    vit, tuned, optimizer = ada()
    callback: Any = tuned.callback
    options = {"init_r": 3, "target_r": 2, "total_step": STEPS, "tinit": 2, "tfinal": 3, "deltaT": 2}
    peer = theirs(SCHEDULE, "ADALORA", options, torch.float64)
    twins = dict(peer.base_model.model.named_parameters())
    for name, parameter in trained(vit).items():
        twins[name].data.copy_(parameter.data)
    learner = torch.optim.SGD([twins[name] for name in trained(vit)], lr=0.05, momentum=0.9)

    def orthogonality() -> Tensor:
        far = [p.T @ p if "lora_B" in n else p @ p.T for n, p in twins.items() if "lora_A" in n or "lora_B" in n]
        return 0.5 * torch.stack([torch.norm(gram - torch.eye(3)) for gram in far]).mean()

    go(vit, optimizer, 0, callback.penalty, partial(callback.after_step, steps=STEPS))
    go(peer, learner, 0, orthogonality, peer.base_model.update_and_allocate)
    for name, parameter in trained(vit).items():
        torch.testing.assert_close(parameter, twins[name], rtol=0, atol=1e-9)
    kept = torch.cat([p for n, p in trained(vit).items() if "lora_E" in n])
    assert (len(kept), int((kept != 0).sum())) == (6, 4)


def test_an_interrupted_adalora_ends_with_the_same_bits() -> None:
    """Stopped while ranks are dropped, and when they are."""
    stops: dict[int, tuple[dict[str, Tensor], Any]] = {}
    vit, tuned, optimizer = ada()
    callback: Any = tuned.callback

    def after(step: int) -> None:
        callback.after_step(step, STEPS)
        stops[step + 1] = tuned.state(), deepcopy(optimizer.state_dict())

    go(vit, optimizer, 0, callback.penalty, after)
    for stop in (4, 8):
        vit, resumed, optimizer = ada()
        resumed.load(stops[stop][0])
        optimizer.load_state_dict(stops[stop][1])
        going: Any = resumed.callback
        go(vit, optimizer, stop, going.penalty, partial(going.after_step, steps=STEPS))
        assert all(torch.equal(tensor, resumed.tensors[name]) for name, tensor in stops[STEPS][0].items())


@pytest.mark.parametrize("method", [OFT(block=5), LoHa(r=33), RoAd(group=7), VBLoRA(length=24), GraLoRA(cells=5)])
def test_what_cannot_be_planned_is_not_counted(method: HubMethod) -> None:
    with pytest.raises(RequestError, match=r"^[a-z]+: \w+ must "):
        method.count(network())


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DoRA(sites=cast("Any", ("head",))),
            "dora: sites must be 'qkv', 'q', 'k', 'v', 'proj', 'fc1' or 'fc2', got head",
        ),
        (lambda: OFT(sites=()), "oft: sites must not be empty"),
        (lambda: HRA(sites=("qkv", "qkv")), r"hra: sites must not repeat a name, got qkv\+qkv"),
        (lambda: WaveFT(n=0), "waveft: n must be at least 1, got 0"),
        (lambda: AdaLoRA(warmup=0.6, final=0.4), r"adalora: warmup \+ final must be below 1"),
        (
            lambda: OFT(block=5).plan(network(), NoProbe()),
            "oft: block must be one of 2, 4, 8.* for these projections, got 5",
        ),
        (lambda: HRA(r=3).plan(network(), NoProbe()), "hra: r must be one of 2, 4, 6.*, got 3"),
        (
            lambda: C3A(block=64).plan(network(), NoProbe()),
            "c3a: block must be one of 1, 2, 4, 8, 16, 32 for .*, got 64",
        ),
        (lambda: LoHa(r=33).plan(network(), NoProbe()), "loha: r must be one of 1 to 32 for .*, got 33"),
        (lambda: RoAd(group=7).plan(network(), NoProbe()), "road: group must be even and divide"),
        (lambda: RoAd(group=3).plan(network(), NoProbe()), "must be even and divide the 96 outputs, got 3"),
        (lambda: GraLoRA(cells=5).plan(network(), NoProbe()), "gralora: cells must divide 32 .*, got 5"),
        (lambda: GraLoRA(cells=0), "gralora: cells must be at least 1, got 0"),
        (lambda: AdaLoRA(final=float("nan")), "adalora: final must be below 1, got nan"),
        (lambda: AdaLoRA(every=0), "adalora: every must be at least 1"),
        (lambda: AdaLoRA(pull=float("nan")), "adalora: pull must be a finite number, got nan"),
        (lambda: DoRA(alpha=0), "dora: alpha must be at least 1"),
        (lambda: WaveFT(scale=float("inf")), "waveft: scale must be a finite number"),
        (lambda: LoKr(factor=0), "lokr: factor must be -1 or at least 1, got 0"),
        (lambda: PEANuT(depth=-1), "peanut: depth must be at least 0"),
        (lambda: VBLoRA(length=24).plan(network(), NoProbe()), "vblora: length must divide 32 .*, got 24"),
        (lambda: HubTuner(nn.Linear(4, 4), "NOT_YET"), "NOT_YET needs peft in a newer version, got "),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()


def test_what_peft_offers_is_here_or_has_a_reason() -> None:
    """Of the tuners of peft 0.21; later ones may stand in neither list."""
    kinds = {method.kind for method, *_ in PEERS} | {"LORA"}
    assert kinds.isdisjoint(UNFIT)
    assert len(kinds | UNFIT.keys()) >= 45
    assert all(reason[0].islower() and not reason.endswith(".") for reason in UNFIT.values())
