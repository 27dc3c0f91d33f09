"""The report: an experiment folder -> one HTML file that needs nothing else to be read (evaluation.md, The report)."""
