"""COVID-CT (Yang et al., 2020): lung CT slices from figures of papers, with official lists of 425, 118 and 203 images.

The lists put slices of some papers into two parts; the notes count this leak.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from peftbench.core.catalogue import dataset_card
from peftbench.core.contract import PARTS, DatasetCard, Part, Presence, Splits
from peftbench.data import image_files
from peftbench.datasets import _files

NAME = "covid_ct"
PAGE = re.compile(r"-p\d+-.*$")  # 2020.03.04.20026005-p10-93%1.png: paper, page, figure, panel
PANEL = re.compile(r"(_\d+)?(%\d+)?$")  # PIIS0140673620301549_0%1.png and 10%2.jpg: paper or case, figure, panel


class CovidCT:
    """The official split as published."""

    @property
    def card(self) -> DatasetCard:
        """Its entry in the catalogue."""
        return dataset_card(NAME)

    @property
    def _needed(self) -> list[str]:
        return [f"{top}{c}" for top in ("Images-processed/CT_", "Data-split/") for c in self.card.classes]

    def presence(self, root: Path) -> Presence:
        """Return how many images of both classes are here."""
        return _files.presence(
            root, NAME, self._needed, lambda home: image_files.count_images(home, ["Images-processed"])
        )

    def load(self, root: Path, seed: int) -> Splits:  # noqa: ARG002  the split is official
        """Read the lists. Raises MissingDataError, also if none of a list's images exists."""
        home = _files.find_home(root, NAME, self._needed)
        parts = {name: _part(home, name, self.card.classes) for name in PARTS}
        notes = (*_files.size_notes(NAME, parts), *_unlisted(home, parts))
        return _files.assemble(parts, self.card, "official", notes)


def source_paper(file: Path) -> str:
    """Return the source paper or, for NonCOVID, the numbered case of a slice: `COVID 2020.03.04.20026005`.

    NonCOVID numbers .jpg and .png files separately: `14.png` and `14%0.jpg` are different cases.
    """
    label = file.parent.name.removeprefix("CT_")
    source = PANEL.sub("", PAGE.sub("", file.stem))
    return f"{label} {source}" if label == "COVID" else f"{label} {source}{file.suffix}"


def _part(home: Path, name: str, classes: tuple[str, ...]) -> Part:
    """Return the images of a part's two lists that exist."""
    listed = [(file, label) for label, kind in enumerate(classes) for file in _listed(home, name, kind)]
    files = [_renamed(file) for file, _ in listed]
    exists = np.flatnonzero(_files.are_present(NAME, files)).tolist()
    papers = [source_paper(listed[i][0]) for i in exists]
    return _files.part_of_files(home, [files[i] for i in exists], [listed[i][1] for i in exists], papers)


def _renamed(file: Path) -> Path:
    """Return the file under the name used by some copies on the web (`_` for `%`) if only that exists."""
    other = file.with_name(file.name.replace("%", "_"))
    return other if other.is_file() and not file.is_file() else file


def _listed(home: Path, name: str, label: str) -> list[Path]:
    list_file = Path("Data-split", label, f"{name}CT_{label}.txt")
    _files.are_present(NAME, [home / list_file])
    lines = (home / list_file).read_text(encoding="utf-8").splitlines()
    folder = _files.below(home, f"Images-processed/CT_{label}")
    return [folder / line.strip() for line in lines if line.strip()]


def _unlisted(home: Path, parts: Mapping[str, Part]) -> tuple[str, ...]:
    others = image_files.count_images(home, ["Images-processed"]) - sum(map(len, parts.values()))
    return (f"Images in no official list, left out: {others}.",) if others > 0 else ()


plugin = CovidCT()
