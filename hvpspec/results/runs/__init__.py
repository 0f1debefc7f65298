"""Records of several runs: comparisons, and series of checkpoints."""
