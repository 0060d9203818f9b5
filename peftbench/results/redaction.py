"""What a report may print: no names of images, folders or patients, and no names of data sets if anonymous."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from peftbench.core.contract import Result
from peftbench.core.record import DataFacts

_QUOTED = re.compile(r"""(?<!\w)(['"])[^'"]+\1""")
_FILE = re.compile(r"\S*[^\s.:]\.(?:png|jpe?g|bmp|tiff?|gif|webp|dcm|nii(?:\.gz)?)\b", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\][^\s,;:'\"()]+")


def redact(text: str) -> str:
    """Replace quoted names, image files and absolute paths, any of which may identify a patient."""
    return _PATH.sub("[path]", _FILE.sub("[image]", _QUOTED.sub("[name]", text)))


def publish(results: Sequence[Result], *, anonymous: bool = False) -> list[Result]:
    """Return the results with names of data sets that may be published.

    `folder:PATH` and `table:FILE` keep the last part of their path; two that then have the same name are numbered.
    `anonymous`: data sets and their classes are numbered, and titles and sources left out.
    """
    names = public_names({result.record.data.name for result in results}, anonymous=anonymous)
    return [_renamed(result, names[result.record.data.name], anonymous=anonymous) for result in results]


def public_names(names: Iterable[str], *, anonymous: bool = False) -> Mapping[str, str]:
    """Return the name that may be published of each data set."""
    found: dict[str, str] = {}
    for number, name in enumerate(sorted(names), 1):
        kind, colon, path = name.partition(":")
        own = colon and kind in {"folder", "table"}
        public = f"data set {number}" if anonymous else f"{kind}:{PurePath(path).name}" if own else name
        same = sum(re.sub(r" #\d+$", "", other) == public for other in found.values())
        found[name] = f"{public} #{same + 1}" if same else public
    return found


def _renamed(result: Result, name: str, *, anonymous: bool) -> Result:
    data = result.record.data
    if data.name == name:
        return result
    changes = {"name": name, "card": _anonymous_card(data, name), "notes": []} if anonymous else {"name": name}
    record = result.record.model_copy(update={"data": data.model_copy(update=changes)})
    return Result(record, result.folder)


def _anonymous_card(data: DataFacts, name: str) -> dict[str, Any]:
    """Return what a report needs of a data set's card, without words of its author."""
    kept: dict[str, Any] = {key: value for key, value in data.card.items() if key in {"task", "synthetic"}}
    classes = [f"class {index}" for index in range(len(data.card.get("classes", ())))]
    group = "group" if data.card.get("group_key") else ""
    return {**kept, "title": name.capitalize(), "group_key": group, "classes": classes}
