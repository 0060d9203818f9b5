"""What the deltas of fully fine-tuned models show: how sparse, how task-specific and where their changes are."""
