"""Training speed and memory: ours beside the guide's script and TRL, on the same rows."""
