"""What the numbers of a Krylov space and of random probes allow to be claimed."""
