"""Executors: how jobs are started, watched and stopped. `local` runs them as processes of this machine."""
