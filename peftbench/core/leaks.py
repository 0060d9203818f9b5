"""Findings of an audit that affect scores."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

LEAKS: Mapping[str, str] = MappingProxyType(  # kind of finding -> what it is
    {
        "groups_across_parts": "groups in several parts",
        "identical_across_parts": "sets of byte-identical images in several parts",
        "near_pairs_across_parts": "pairs of near duplicates in two parts",
        "contradicting_pairs": "pairs of identical or near-identical images with different labels",
    }
)


def describe_leaks(counts: Mapping[str, int]) -> str:
    """Return the findings that affect scores, with their numbers; empty if there is none."""
    return "; ".join(f"{description}: {counts[kind]}" for kind, description in LEAKS.items() if counts.get(kind))
