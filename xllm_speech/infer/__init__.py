"""Layer 5: using a trained model."""
