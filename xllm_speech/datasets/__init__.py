"""Layer 4: what training draws: its configuration, the dataset, sampling, and the prepared data of a run."""
