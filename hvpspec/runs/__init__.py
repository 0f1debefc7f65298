"""Several runs: compared side by side, or followed over the checkpoints of a training run."""
