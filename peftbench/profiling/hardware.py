"""The machine: versions, devices, precision, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from peftbench.core.constants import Precision
from peftbench.errors import JobError, is_out_of_memory

PRECISIONS: Mapping[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}  # what autocast computes in
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CLEAR = Path("/proc/self/clear_refs")  # Linux: writing 5 forgets the peak of the resident set


def environment(device: str) -> dict[str, str]:
    """Return versions and hardware, as records hold them."""
    packages = {name: version(name) for name in ("torch", "timm", "peft", "numpy", "peftbench")}
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "device": device,
        "hardware": name,
        **packages,
    }


def _processor() -> str:
    """Return the processor's model name, or its architecture where the system does not report one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """Return the number of GPUs that this process may use."""
    return torch.cuda.device_count()


def auto_device() -> str:
    """Return `cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def auto_precision(device: str) -> Precision:
    """Return bf16 where the hardware has native products in it, else fp32."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        return "bf16" if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else "fp32"
    except OSError:
        return "fp32"


@contextmanager
def repeatable(*, asked: bool) -> Iterator[None]:
    """Let a GPU compute the same bits each time if `asked`; an operation that has no such kernel raises.

    Raises JobError if this process has used the GPU before without the setting that cuBLAS reads at its first product.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if asked:
        if CUBLAS not in os.environ and torch.cuda.is_initialized():
            raise JobError(f"--deterministic: this process has used the GPU without {CUBLAS}=:4096:8; set it first.")
        os.environ.setdefault(CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@dataclass
class Peak:
    """The peak of a measured block, set when it ends."""

    bytes: int = 0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measure the peak memory of a block: the allocator's on a GPU, the growth of the resident set on a CPU."""
    peak, before = Peak(), _reset(device)
    try:
        yield peak
    finally:
        peak.bytes = max(0, _highest(device) - before)


def _reset(device: str) -> int:
    free()  # not what earlier jobs left in reference cycles
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the whole process
        _CLEAR.write_text("5")
    return int(psutil.Process().memory_info().rss)


def _highest(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return _highest_elsewhere()


def _highest_elsewhere() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # noqa: PLC0415 - not on Windows

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)


@dataclass(frozen=True)
class OutOfMemory:
    """An allocation that failed."""

    message: str


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """Return the failed allocation that an error reports, on a GPU or a CPU, or None for any other error."""
    first = next(iter(str(error).splitlines()), "") or "no more"
    return OutOfMemory(first.rpartition("] ")[2]) if is_out_of_memory(error) else None


def free() -> None:
    """Collect garbage and return unused memory to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim:  # glibc
        trim(0)
