"""Pictures and codes for training and evaluation: where they lie, in which order they come, and how rows are packed."""
