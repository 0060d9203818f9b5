"""Report formats, one a file; `_` begins the names of files that are none."""
