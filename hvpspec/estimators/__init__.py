"""Spectral figures of any symmetric operator from its products alone. Nothing here knows models, losses or data."""
