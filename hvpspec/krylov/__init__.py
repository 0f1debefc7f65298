"""Krylov spaces, random probes and inverse iteration on any symmetric operator."""
