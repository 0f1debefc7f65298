"""Linear systems with any symmetric operator, on its device: each solver gives one iterate after the other."""
