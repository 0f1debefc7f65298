"""Which of torch's kernels run while a product is computed, and what takes the place of those that are wrong."""
