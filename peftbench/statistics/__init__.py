"""Scores and their confidence intervals, from stored logits."""
