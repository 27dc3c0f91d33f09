"""One module per verb of `xllm-speech`: argparse only, the work is done in the rooms below."""
