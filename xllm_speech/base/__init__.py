"""Layer 0: errors, units of time, files, configuration and the run header."""
