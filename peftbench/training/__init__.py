"""One job from start to end; read `job.py` first."""
