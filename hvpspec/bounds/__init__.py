"""What a Krylov space and random probes prove about the spectrum: intervals, brackets and error bounds."""
