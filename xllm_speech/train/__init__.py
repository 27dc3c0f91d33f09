"""Layer 5: the training loop, its schedule, its saves, and the average of checkpoints."""
