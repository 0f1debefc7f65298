"""Recurrent layers with exact derivatives of any order at little cost: a few operators, each a loop over steps."""
