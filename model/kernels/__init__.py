"""Hand-written kernels, each with a plain reference twin."""
