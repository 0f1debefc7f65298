"""The matrices on offer, each a SciPy LinearOperator."""
