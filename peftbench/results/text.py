"""Text from outside (names of classes, methods, data sets, files and titles), made harmless where it leaves peftbench.

`printable` is applied once, to every text of a table or a terminal line; what a format itself would interpret
(Markdown, LaTeX, HTML) is then escaped by that format. `csv_text` is applied to every text of a CSV file.
"""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs"})  # control characters, invisible ones that reorder text, undecodable bytes
_SPACE = frozenset("\t\n\v\f\r\x85\u2028\u2029")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # ASCII and full width


def printable(text: str) -> str:
    r"""Return the text on one line, with control and invisible characters shown by their code, such as `\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(letter) for letter in text.replace("\r\n", "\n"))


def _shown(letter: str) -> str:
    if letter in _SPACE:
        return " "
    hidden = unicodedata.category(letter) in _HIDDEN
    return letter.encode("unicode_escape", "surrogatepass").decode() if hidden else letter


def markdown_text(text: str) -> str:
    """Return text that Markdown shows literally, on one line."""
    return re.sub(r"([\\`*_|<>\[\]$~&])", r"\\\1", " ".join(text.split()))


def csv_text(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: one that starts with = + - @ gets a leading apostrophe.

    Undecodable bytes of file names stay. Numbers must not pass through here. OWASP, "CSV injection".
    """
    shown = "".join(letter if unicodedata.category(letter) == "Cs" else _shown(letter) for letter in text)
    return f"'{shown}" if text.lstrip().startswith(_FORMULA) else shown
