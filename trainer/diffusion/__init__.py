"""The mathematics of diffusion: schedules, process, guidance, samplers, degradations."""
