"""Layer 2: network blocks that know nothing of speech, images or language."""
