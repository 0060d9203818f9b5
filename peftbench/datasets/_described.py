"""A data set described by `datasets/NAME.toml` in the working folder: class folders or a table, without code."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from peftbench.core.catalogue import OwnEntry, dataset_card, dataset_entry
from peftbench.core.contract import DatasetCard, Part, Presence, Splits
from peftbench.data import image_files
from peftbench.datasets import _own, folder, table
from peftbench.errors import CatalogueError, DataError

TABLES = frozenset({".csv", ".tsv"})


@dataclass(frozen=True)
class Described:
    """The data set of the entry `name`, whose `path` is relative to the working folder or starts with `~`."""

    name: str

    @property
    def entry(self) -> OwnEntry:
        """The content of the file. Raises CatalogueError."""
        entry = dataset_entry(self.name)
        if not isinstance(entry, OwnEntry):
            raise CatalogueError(f"datasets/{self.name}.toml is no longer in the working folder. Restore it.")
        if entry.task == "multi_label" and Path(entry.path).suffix.lower() not in TABLES:
            raise CatalogueError(f'datasets/{self.name}.toml: task = "multi_label" needs a table (FILE.csv) as `path`.')
        return entry

    @property
    def home(self) -> Path:
        """The folder or table that the entry names."""
        return _own.resolve_path(self.entry.path)

    @property
    def _is_table(self) -> bool:
        return self.home.suffix.lower() in TABLES

    @property
    def _several(self) -> bool:
        return self.entry.task == "multi_label"

    @property
    def card(self) -> DatasetCard:
        """The card as described, with classes and group key filled in from the files. Raises as `load` does."""
        card = dataset_card(self.name)
        if self._is_table:
            listing = self._listing
            classes, key = table.classes_of(listing), table.key_of(listing)
        else:
            classes, key = folder.classes_of(self.home), folder.key_of(self.home)
        key = card.group_key or ("group" if self.entry.group else key)
        return replace(card, classes=card.classes or classes, group_key=key)

    def presence(self, root: Path) -> Presence:  # noqa: ARG002  the path does not depend on the data folder
        """Return how many images were found, of the total stated under `sizes`."""
        if not self.home.exists():
            return Presence()
        found = len(self._listing.lines) if self._is_table else image_files.count_images(self.home, ["."])
        return Presence(found, self.entry.sizes.get("total", found))

    def load(self, root: Path, seed: int) -> Splits:  # noqa: ARG002  the description states its own folder and split
        """Read the folder or table and split off missing parts. Raises as `folder:` and `table:` do."""
        card = self.card
        given = self._table(card.classes) if self._is_table else self._folder(card.classes)
        if self.entry.group:
            given = replace(given, parts={name: self._grouped(part) for name, part in given.parts.items()})
        return _own.make_splits(given, card, seed)

    def _table(self, classes: tuple[str, ...]) -> _own.Given:
        return table.read(self._listing, classes, several=self._several)

    @property
    def _listing(self) -> table.Listing:
        entry = self.entry
        columns = table.Columns(entry.image_column, entry.label_column, entry.split_column, entry.group_column)
        return table.read_table(self.home, columns, several=self._several)

    def _folder(self, classes: tuple[str, ...]) -> _own.Given:
        if sorted(classes) != sorted(folder.classes_of(self.home)):
            found = ", ".join(folder.classes_of(self.home))
            raise DataError(
                f"datasets/{self.name}.toml: `classes` must list the class folders of {self.home}: {found}."
            )
        return folder.read(self.home, classes)

    def _grouped(self, part: Part) -> Part:
        """Return the part with groups extracted from the image names by the regular expression `group`."""
        try:
            found = [re.search(self.entry.group, name) for name in part.names]
        except (re.error, OverflowError, RecursionError) as error:
            raise CatalogueError(
                f"datasets/{self.name}.toml: `group` is not a valid regular expression: {error}."
            ) from None
        keys = [match[1] if match and match.re.groups else match and match[0] for match in found]
        if None in keys:
            first = part.names[keys.index(None)]
            raise DataError(
                f"datasets/{self.name}.toml: `group` does not match the path {first!r}. Fix the expression or the path."
            )
        return replace(part, groups=tuple(str(key) for key in keys))
