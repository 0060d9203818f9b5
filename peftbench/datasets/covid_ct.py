"""COVID-CT (Yang et al., 2020): lung CT slices cut out of papers, with its official lists of 425, 118 and 203 images.

Those lists put slices of one paper into two parts, a leak that the notes count.
"""

from __future__ import annotations

import re
from pathlib import Path

from peftbench.catalogue import dataset_card
from peftbench.contract import Card, Part, Splits
from peftbench.datasets import _files

NAME = "covid_ct"
PAGE = re.compile(r"-p\d+-.*$")  # 2020.03.04.20026005-p10-93%1.png: paper, page, figure, panel
PANEL = re.compile(r"(_\d+)?(%\d+)?$")  # PIIS0140673620301549_0%1.png and 10%2.jpg: paper or case, figure, panel


class CovidCT:
    """The official split as published."""

    @property
    def card(self) -> Card:
        """Its entry in the catalogue."""
        return dataset_card(NAME)

    def load(self, root: Path, seed: int) -> Splits:  # noqa: ARG002  the split is official
        """Read the lists; raises MissingDataError also when a listed image is not there."""
        needed = [f"{top}{c}" for top in ("Images-processed/CT_", "Data-split/") for c in self.card.classes]
        home = _files.find(root, NAME, needed)
        parts = {name: _part(home, name, self.card.classes) for name in ("train", "val", "test")}
        found = sum(len(part) for part in parts.values())
        notes = (*_files.count_note(NAME, found), *_unlisted(home, found))
        return _files.assemble(parts, self.card, "official", notes)


def source_paper(file: Path) -> str:
    """The paper or, for NonCOVID, the numbered case that a slice was cut from: `COVID 2020.03.04.20026005`.

    NonCOVID's .jpg and .png files are numbered apart: `14.png` is no slice of the case of `14%0.jpg`.
    """
    label = file.parent.name.removeprefix("CT_")
    source = PANEL.sub("", PAGE.sub("", file.stem))
    return f"{label} {source}" if label == "COVID" else f"{label} {source}{file.suffix}"


def _part(home: Path, name: str, classes: tuple[str, ...]) -> Part:
    listed = [_listed(home, name, label) for label in classes]
    files = [file for one_class in listed for file in one_class]
    _files.check_listed(NAME, files)
    labels = [label for label, one_class in enumerate(listed) for _ in one_class]
    return _files.part(home, files, labels, [source_paper(file) for file in files])


def _listed(home: Path, name: str, label: str) -> list[Path]:
    list_file = Path("Data-split", label, f"{name}CT_{label}.txt")
    _files.check_listed(NAME, [home / list_file])
    lines = (home / list_file).read_text(encoding="utf-8").splitlines()
    return [home / "Images-processed" / f"CT_{label}" / line.strip() for line in lines if line.strip()]


def _unlisted(home: Path, listed: int) -> tuple[str, ...]:
    others = len(_files.images_in(home / "Images-processed")) - listed
    return (f"{others} images stand in no official list and are left out.",) if others > 0 else ()


plugin = CovidCT()
