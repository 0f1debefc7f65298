"""What the operating system may do to a run, and what a run asks of it."""
