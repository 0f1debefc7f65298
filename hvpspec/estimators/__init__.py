"""The public calls: spectral quantities of any symmetric operator, from its products. Models and data are not known."""
