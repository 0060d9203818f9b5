"""Contracts, the catalogue, the registry and what a study may say."""
