"""Layer 3: manifests of speech (lhotse cuts), conversations and Kaldi data directories; one module per corpus."""
