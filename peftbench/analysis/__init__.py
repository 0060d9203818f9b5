"""What the deltas of fully fine-tuned models show about their changes, and which claims of the paper hold."""
