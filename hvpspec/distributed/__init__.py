"""Several processes (ranks) as one: collectives, what each rank has of a vector, and what they agree on."""
