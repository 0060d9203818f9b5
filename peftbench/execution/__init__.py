"""Where jobs run: this machine's processes."""
