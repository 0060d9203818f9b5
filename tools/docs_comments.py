"""An extension of mkdocstrings: the comment after a field is its description in the Python API."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from griffe import Attribute, Docstring, Extension, ObjectNode


class Comments(Extension):
    """Give an attribute without a docstring the comment that ends its line."""

    def on_attribute_instance(self, *, node: ast.AST | ObjectNode, attr: Attribute, **_: Any) -> None:  # noqa: ANN401 - griffe's
        """Read the comment from the source of the attribute."""
        if attr.docstring or not isinstance(node, ast.stmt) or not isinstance(attr.filepath, Path):
            return
        line = attr.lines_collection[attr.filepath][(node.end_lineno or node.lineno) - 1]
        comment = line.encode()[node.end_col_offset or 0 :].decode().partition("#")[2].strip()
        if comment:
            begins = comment[0].upper() if comment.partition(" ")[0].strip(",;:").isalpha() else comment[0]
            attr.docstring = Docstring(f"{begins}{comment[1:]}.", parent=attr)
