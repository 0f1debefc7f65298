"""What optimizers leave in checkpoints: found, recognised, and matched to the parameters of a model by name."""
