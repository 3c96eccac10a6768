"""`unclip launch`: pipelines as jobs of Slurm or as processes; and a Slurm to try things on."""
