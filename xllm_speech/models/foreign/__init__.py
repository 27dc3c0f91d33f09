"""Checkpoints that others wrote, brought to our names: one module per family of layouts, `load` chooses."""
