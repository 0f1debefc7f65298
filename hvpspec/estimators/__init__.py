"""The public calls: spectral quantities of any symmetric operator from its products. Nothing here knows models or data."""
