"""The built-in methods, one per file; a file whose name begins with `_` is code that several methods share."""
