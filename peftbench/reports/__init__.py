"""Report formats, one per file; a file whose name begins with `_` is no format."""
