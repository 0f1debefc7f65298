"""The objective: the weighted mean of a loss over batches, as a function of the chosen parameters."""
