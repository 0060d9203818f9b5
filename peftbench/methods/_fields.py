"""Types of the fields that several methods have; `core.fields.checked` refuses what lies outside."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

LARGEST_SIZE = 8192  # of a rank, a bottleneck or a prompt: above it, tensors of gigabytes per layer

Size: TypeAlias = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
SiteName: TypeAlias = Literal["qkv", "proj", "fc1", "fc2"]
LoRASite: TypeAlias = Literal["qkv", "q", "k", "v", "proj", "fc1", "fc2"]  # q, k, v: parts of the fused qkv


def _nonzero(value: float) -> float:
    if value == 0:
        raise ValueError("must not be 0")
    return value


def no_repeats(sites: tuple[str, ...]) -> tuple[str, ...]:
    """Return `sites`. Raises ValueError if one of them occurs twice."""
    if len(set(sites)) < len(sites):
        raise ValueError("must not repeat a name")
    return sites


def _no_overlap(sites: tuple[str, ...]) -> tuple[str, ...]:
    if "qkv" in sites and {"q", "k", "v"} & set(sites):
        raise ValueError("must not name qkv beside q, k or v")
    return sites


Factor: TypeAlias = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_nonzero)]
Sites: TypeAlias = Annotated[tuple[SiteName, ...], Field(min_length=1), AfterValidator(no_repeats)]
LoRASites: TypeAlias = Annotated[
    tuple[LoRASite, ...], Field(min_length=1), AfterValidator(no_repeats), AfterValidator(_no_overlap)
]
