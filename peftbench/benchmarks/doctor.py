"""What this machine can run: one check for each part that a study needs or may use, with a way to fix what lacks.

Nothing is imported before its own check, so that a broken installation is reported and not raised.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psutil

from peftbench.core.catalogue_files import backbone_names
from peftbench.core.guarded import first_line
from peftbench.storage.folders import cache_folder, data_folder
from peftbench.storage.sizes import format_size

State: TypeAlias = Literal["ok", "missing", "broken"]  # missing: optional; broken: without it nothing runs
LITTLE_MEMORY, LITTLE_DISK = 4 << 30, 10 << 30  # bytes


@dataclass(frozen=True)
class Check:
    """One part of the machine or the installation."""

    part: str
    state: State
    found: str
    fix: str = ""  # what to do; "" if there is nothing to do


@dataclass(frozen=True)
class Folders:
    """The folders of a study."""

    store: Path
    data: Path
    cache: Path


def examine(data: Path | None = None, cache: Path | None = None, store: Path = Path()) -> list[Check]:
    """Return the checks of this machine, those without which nothing runs first."""
    folders = Folders(store, data_folder(data), cache_folder(cache))
    found = [_guarded(part, check, folders) for part, check in ESSENTIAL.items()]
    if any(check.state == "broken" for check in found):
        return found
    return [*found, *(_guarded(part, check, folders) for part, check in OTHERS.items()), *_extras()]


def can_run(checks: list[Check]) -> bool:
    """Return whether at least the built-in backbone trains here."""
    return all(check.state != "broken" for check in checks)


def _guarded(part: str, check: Callable[[Folders], Check], folders: Folders) -> Check:
    """Return what a check finds; whatever it raises is a broken part with the reason."""
    try:
        return check(folders)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken package raises almost anything
        state: State = "broken" if part in ESSENTIAL else "missing"
        return Check(part, state, first_line(error), "Install peftbench again in a new environment.")


# --- what every study needs ------------------------------------------------------------------------------------------


def _python(_: Folders) -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch(_: Folders) -> Check:
    torch: Any = import_module("torch")
    return Check("torch", "ok", f"{torch.__version__}, timm {version('timm')}, peft {version('peft')}")


def _training(_: Folders) -> Check:
    """Run one step of the built-in backbone, the smallest study there is."""
    torch: Any = import_module("torch")
    vit = import_module("peftbench.models.backbone").locate("mini").build(0)
    vit(torch.zeros(2, 3, 64, 64)).sum().backward()
    return Check("training", "ok", "the built-in backbone computes features and gradients")


ESSENTIAL: dict[str, Callable[[Folders], Check]] = {"python": _python, "torch": _torch, "training": _training}


# --- what a study may use --------------------------------------------------------------------------------------------


def _cuda(_: Folders) -> Check:
    torch: Any = import_module("torch")
    if torch.cuda.is_available():
        names = ", ".join(_gpu(torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count()))
        torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).sum().item()
        return Check("CUDA", "ok", f"{torch.version.cuda}: {names}")
    if shutil.which("nvidia-smi"):
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        fix = "Check that `nvidia-smi` lists the GPU, and install the torch for its driver from pytorch.org."
        return Check("CUDA", "missing", f"torch {torch.__version__} ({built}) finds no GPU", fix)
    return Check("CUDA", "missing", "no GPU", "Jobs run on the CPU; `peftbench plan` states how long they take.")


def _gpu(properties: Any) -> str:  # noqa: ANN401 - torch's
    return f"{properties.name} ({format_size(properties.total_memory)})"


def _precision(_: Folders) -> Check:
    hardware = import_module("peftbench.profiling.hardware")
    device = hardware.auto_device()
    found = hardware.auto_precision(device)
    fix = "" if found == "bf16" else "bf16 would be emulated here; fp32 is used unless --precision states another."
    return Check("precision", "ok", f"{found} on {device}", fix)


def _memory(_: Folders) -> Check:
    cores = import_module("peftbench.profiling.hardware").cores()
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    little = free < LITTLE_MEMORY
    fix = "Use --jobs 1 and a smaller --batch; `peftbench plan` states the memory of a job." if little else ""
    text = f"{format_size(free)} of {format_size(total)} free, {cores} CPU cores"
    return Check("memory", "missing" if little else "ok", text, fix)


def _disk(folders: Folders) -> Check:
    places = {"--store": folders.store.absolute(), "--cache": folders.cache, "--data": folders.data}
    there = {flag: _existing(place) for flag, place in places.items()}
    free = {flag: shutil.disk_usage(place).free for flag, place in there.items()}
    text = ", ".join(f"{flag[2:]} {format_size(size)} free" for flag, size in free.items())
    closed = [flag for flag in ("--store", "--cache") if not os.access(there[flag], os.W_OK)]
    if closed:
        fix = f"Pass {closed[0]} FOLDER with a folder that you may write to."
        return Check("disk", "missing", f"{text}; {there[closed[0]]} cannot be written", fix)
    little = [flag for flag, size in free.items() if size < LITTLE_DISK]
    fix = f"Free space, or pass {little[0]} FOLDER on another disk." if little else ""
    return Check("disk", "missing" if little else "ok", text, fix)


def _existing(place: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _data(folders: Folders) -> Check:
    found = import_module("peftbench.data.availability").complete_datasets(folders.data)
    if found:
        return Check("data", "ok", f"{len(found)} complete in {folders.data}: {', '.join(found)}")
    fix = "`peftbench list datasets` shows how to get them; phantoms and folder:PATH need no download."
    return Check("data", "missing", f"no complete data set in {folders.data}", fix)


def _weights(_: Folders) -> Check:
    hub = import_module("peftbench.models.hub")
    here = [name for name in backbone_names() if hub.has_preset_weights(name)]
    offline = "; HF_HUB_OFFLINE is set, so nothing is downloaded" if hub.constants.HF_HUB_OFFLINE else ""
    text = f"{', '.join(here)} of {len(backbone_names())} presets{offline}"
    fix = "`peftbench weights fetch clip_vit_b16` downloads others; the first run with one does, too."
    return Check("weights", "ok", text, "" if len(here) > 1 else fix)


def _slurm(_: Folders) -> Check:
    if place := shutil.which("sbatch"):
        return Check("Slurm", "ok", place)
    return Check("Slurm", "missing", "no sbatch", "For --executor slurm, work on a login node or load Slurm's module.")


def _ray(_: Folders) -> Check:
    if find_spec("ray") is None:
        return Check("Ray", "missing", "not installed", "For --executor ray: pip install 'peftbench[ray]'.")
    address = os.environ.get("RAY_ADDRESS")
    where = f"RAY_ADDRESS={address}" if address else "RAY_ADDRESS is not set, so a running cluster is searched for"
    return Check("Ray", "ok", f"{version('ray')}, {where}")


OTHERS: dict[str, Callable[[Folders], Check]] = {
    "CUDA": _cuda,
    "precision": _precision,
    "memory": _memory,
    "disk": _disk,
    "data": _data,
    "weights": _weights,
    "Slurm": _slurm,
    "Ray": _ray,
}


def _extras() -> Iterator[Check]:
    """Yield a check for each extra of the installed package, except Ray's."""
    try:
        about = metadata("peftbench")
    except PackageNotFoundError:
        return
    wanted = about.get_all("Requires-Dist") or []
    for extra in about.get_all("Provides-Extra") or []:
        packages = [_package(line) for line in wanted if f'extra == "{extra}"' in line.replace("'", '"')]
        absent = [name for name in packages if not _is_installed(name)]
        text = f"{', '.join(absent)} not installed" if absent else ", ".join(f"{p} {version(p)}" for p in packages)
        fix = f"If you need it: pip install 'peftbench[{extra}]'." if absent else ""
        if extra != "ray":
            yield Check(f"extra {extra}", "missing" if absent else "ok", text, fix)


def _package(requirement: str) -> str:
    """Return the name in a requirement such as `pylibjpeg[all]>=2.0; extra == "dicom"`."""
    return requirement.partition(";")[0].split("[")[0].split(">")[0].split("=")[0].split("<")[0].strip()


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
