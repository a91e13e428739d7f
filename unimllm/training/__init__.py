"""The training loop that every program in `train/` shares, its configuration and its checkpoints."""
