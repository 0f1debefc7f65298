"""What the estimators share: a basis and probes, what to do next with them, and the search for missed values."""
