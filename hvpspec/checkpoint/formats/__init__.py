"""A checkpoint format a file. Each reads its files safely, without running anything in them."""
