"""Layer 3: the CIF ASR decoder, CTC and search."""
