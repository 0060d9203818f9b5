"""The facts about the machine, and the memory that a block of code takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from peftbench.profiling import hardware

MB = 2**20


def test_the_environment_names_versions_and_hardware() -> None:
    found = hardware.environment("cpu")
    assert torch.__version__.startswith(found["torch"])  # which adds what it was built for
    assert found["device"] == "cpu"
    assert all(found[name] for name in ("python", "system", "hardware", "timm", "peft", "numpy", "peftbench"))


def test_the_peak_counts_what_was_let_go_again() -> None:
    with hardware.peak_memory("cpu") as peak:
        np.ones(200 * MB, np.uint8).sum()
    assert 190 * MB < peak.bytes < 400 * MB


def test_the_peak_is_that_of_the_block_alone() -> None:
    np.ones(200 * MB, np.uint8).sum()
    with hardware.peak_memory("cpu") as peak:
        np.ones(20 * MB, np.uint8).sum()
    assert peak.bytes < 100 * MB


def test_the_peak_is_noted_when_the_block_fails() -> None:
    measuring = hardware.peak_memory("cpu")
    peak = measuring.__enter__()
    np.ones(100 * MB, np.uint8).sum()
    assert not measuring.__exit__(ZeroDivisionError, None, None)
    assert peak.bytes > 90 * MB


def test_without_a_way_to_forget_the_peak_the_measure_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_CLEAR", Path("/nowhere/clear_refs"))
    with hardware.peak_memory("cpu") as peak:
        np.ones(50 * MB, np.uint8).sum()
    assert peak.bytes >= 0


@pytest.mark.parametrize(("flags", "precision"), [("avx2 avx512_bf16", "bf16"), ("avx2 avx512f", "fp32")])
def test_bf16_where_the_processor_multiplies_it(flags: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags: {flags}")
    assert hardware.auto_precision("cpu") == precision


def test_fp32_where_the_processor_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert hardware.auto_precision("cpu") == "fp32"
    assert hardware._processor()


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_cuda_where_there_is_a_gpu(gpu: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert hardware.auto_device() == device


def test_kernels_are_deterministic_within_and_as_before_afterwards() -> None:
    with hardware.repeatable(asked=True):
        assert torch.are_deterministic_algorithms_enabled()
    with hardware.repeatable(asked=False):
        assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="no such"), hardware.repeatable(asked=True):
        raise RuntimeError("no such kernel")
    assert not torch.are_deterministic_algorithms_enabled()
