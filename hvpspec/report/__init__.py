"""Results for people and programs: text for the terminal, JSON for scripts. Knows results, and nothing else."""
