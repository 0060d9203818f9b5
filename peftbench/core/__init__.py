"""Contracts, the catalogue, the registry, and the fields and notation of a study."""
