"""How much the methods of other papers train, against their closed forms, and how budgets are met."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from peftbench.core.registry import registry
from peftbench.errors import RequestError
from peftbench.models import backbone
from peftbench.models.method import Method
from tests.networks import blank

VIT_B, N = "vit_base_patch16_224", 85_798_656
D, BLOCKS = 768, 12
SIZED = (
    "adapter_houlsby",
    "adapter_pfeiffer",
    "adapter_plus",
    "arc",
    "control_norm",
    "control_patch",
    "control_random",
    "control_within",
    "convpass",
    "fact_tk",
    "fact_tt",
    "gps",
    "last_blocks",
    "lora_fa",
    "prefix_tuning",
    "rep_adapter",
)


@pytest.fixture(scope="module")
def vit_b() -> nn.Module:
    return blank(VIT_B)


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    return backbone.locate("clip_vit_b16", blank=True).blank()


def made(name: str, **fields: Any) -> Method:
    method: Method = registry("methods").get(name)(**fields)
    return method


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("adapter_houlsby", {"bottleneck": 8}, 313_536),
        ("adapter_houlsby", {"bottleneck": 64}, 2_379_264),
        ("adapter_houlsby", {"bottleneck": 8, "norms": True}, 313_536 + 38_400),
        ("adapter_pfeiffer", {"bottleneck": 8}, 313_536 // 2),
        ("adapter_plus", {"bottleneck": 8}, 313_536 // 2 + BLOCKS * D),
        ("rep_adapter", {}, 239_808),
        ("arc", {}, 2 * D * 50 + 2 * BLOCKS * (50 + D)),
        ("rlrr", {}, BLOCKS * (4 * 3 * D + (D + 8 * D) + (4 * D + 2 * D) + 4 * D) + 4 * D),  # 288,768
        ("convpass", {}, 327_552),
        *[("fact_tk", {"r": r}, 1_680 * r + r**3) for r in (1, 8, 16)],
        *[("fact_tt", {"r": r}, 1_536 * r + 144 * r**2) for r in (1, 8, 16)],
        ("diff_fit", {}, 140_544),
        *[("gps", {"k": k}, 83_712 * (k + 1)) for k in (1, 5)],
        ("lora_fa", {"r": 1}, BLOCKS * 3 * D),
        *[("prefix_tuning", {"length": p}, 18_432 * p) for p in (1, 10)],
        *[("last_blocks", {"last": k}, 7_087_872 * k + 1_536) for k in (1, 12)],
        ("attention_pooling", {}, 2 * D**2 + D),
        ("control_random", {}, 857_987),
        ("control_within", {}, 857_987),
        ("control_norm", {}, 8_580),
        ("control_patch", {}, 85_799),
    ],
    ids=str,
)
def test_closed_forms(vit_b: nn.Module, name: str, fields: dict[str, Any], count: int) -> None:
    assert made(name, **fields).count(vit_b) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (
            "diff_fit",
            141_312,
        ),  # the norm ahead of the first block has a bias and a scale, the patch convolution no bias
        ("gps", 2 * 83_712 - D),
        ("adapter_houlsby", 2_379_264),
        ("convpass", 327_552),
        ("fact_tt", 1_536 * 16 + 144 * 16**2),
        ("prefix_tuning", 184_320),
        ("control_random", 857_994),
    ],
)
def test_closed_forms_on_clip(clip: nn.Module, name: str, count: int) -> None:
    assert made(name).count(clip) == count


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("budget", [1, 857_987, N])
def test_a_budget_takes_the_nearest_count(vit_b: nn.Module, name: str, budget: int) -> None:
    method = made(name)
    try:
        fit = method.within(budget, vit_b)
    except RequestError as error:  # a ratio that no count of this network rounds to
        pytest.fail(str(error))
    assert fit.reached == fit.method.count(vit_b)
    counts = _counts_around(fit.method, vit_b)
    assert abs(fit.reached - budget) == min(abs(count - budget) for count in counts)
    assert (fit.edge is None) == (min(counts) <= budget <= max(counts))


def _counts_around(method: Method, vit: nn.Module) -> list[int]:
    """Those of the neighboring sizes; a mask has every count up to its candidates'."""
    if method.knob == "ratio":
        return [1, method.count(vit), method.ceiling(vit)]  # type: ignore[attr-defined]
    sizes, value = list(method.sizes(vit)), getattr(method, str(method.knob))
    place = sizes.index(value)
    return [method.at_size(size).count(vit) for size in sizes[max(0, place - 1) : place + 2]]
