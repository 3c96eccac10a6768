"""Slurm launching: not written yet. Until it is, run `unclip train` under torchrun or srun."""
