"""Using a finished job: predictions and merged weights."""
