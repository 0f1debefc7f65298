"""The gradient of a loss in the spectrum: its curvature, its share of the eigenvectors, and its noise."""
