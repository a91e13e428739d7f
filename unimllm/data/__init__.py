"""Pictures, codes and conversations for training and evaluation: where they lie, their order, how rows are packed."""
