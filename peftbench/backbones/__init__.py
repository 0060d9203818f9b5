"""Backbone plug-ins, one per file; files that start with `_` are shared code."""
