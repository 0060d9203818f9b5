"""From a study to its jobs."""
