"""The matrices that hvpspec offers, each a SciPy LinearOperator."""
