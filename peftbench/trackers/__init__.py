"""Trackers: other programs' records of experiments, a copy of what the store holds about each job."""
