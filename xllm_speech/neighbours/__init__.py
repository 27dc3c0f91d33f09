"""Other toolkits: the same models under their trainers, and weights in both directions. Nothing of ours depends on them."""
