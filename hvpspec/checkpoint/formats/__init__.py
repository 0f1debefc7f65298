"""One checkpoint format a file: each reads a file safely, without running anything in it."""
