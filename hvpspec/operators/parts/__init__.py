"""Products by parts of the data: folds of the batches, and the shares of ranks."""
