"""A real Slurm of several nodes, with accounting, on one Debian machine: for tests and trials."""
