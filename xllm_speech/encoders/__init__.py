"""Layer 3: the frozen or trained encoders of each modality."""
