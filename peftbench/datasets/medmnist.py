"""`medmnist:NAME[size=64]`: the twelve two-dimensional sets of MedMNIST+ (Yang et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftbench.core.catalogue import dataset_card, dataset_entry
from peftbench.core.contract import DatasetCard, Presence, Splits
from peftbench.data.availability import COLLECTION
from peftbench.datasets import _files, _medmnist
from peftbench.errors import RequestError, UnknownNameError


@dataclass(frozen=True)
class MedMNIST:
    """`medmnist:NAME[size=SIZE]`: pathmnist, chestmnist, ... at 28 (default), 64, 128 or 224 pixels."""

    name: str
    size: int = 28

    def __post_init__(self) -> None:
        known = dataset_entry(COLLECTION).members
        if self.name not in known:
            raise UnknownNameError("set of MedMNIST+", self.name, known)
        if self.size not in _medmnist.SIDES:
            raise RequestError(f"medmnist:{self.name}[size={self.size}]: size must be 28, 64, 128 or 224.")

    @property
    def card(self) -> DatasetCard:
        """Its entry in the catalogue."""
        return dataset_card(COLLECTION, self.name)

    def presence(self, root: Path) -> Presence:
        """Return how many images of the set are here."""
        return _medmnist.presence(root, self.name, self.size)

    def load(self, root: Path, seed: int) -> Splits:  # noqa: ARG002  the split is official
        """Read the published parts. Raises MissingDataError and DataError."""
        parts = _medmnist.read(root, self.name, self.size)
        return _files.assemble(parts, self.card, "official", _medmnist.notes(self.name, self.size, parts))

    @classmethod
    def here(cls, root: Path) -> tuple[str, ...]:
        """Return the specifications of all sets under `root`, each at its largest size."""
        sides = {name: _medmnist.sides_here(root, name) for name in dataset_entry(COLLECTION).members}
        return tuple(f"{COLLECTION}:{name}[size={found[-1]}]" for name, found in sides.items() if found)


plugin = MedMNIST
