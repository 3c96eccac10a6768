"""Slurm: a cluster to try things on. Launching is not there yet: run `unclip train` under srun."""
