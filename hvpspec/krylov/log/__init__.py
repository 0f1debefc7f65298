"""The log of the products of a run, from which an interrupted one goes on."""
