"""Parts of the batches: a random sample of them, and what each rank has."""
