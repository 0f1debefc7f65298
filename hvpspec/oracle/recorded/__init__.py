"""The recorded engine: the product of a batch as two graphs, of which the first runs once."""
