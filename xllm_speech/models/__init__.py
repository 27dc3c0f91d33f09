"""Layer 4: whole models, built from their configurations, and their checkpoints."""
