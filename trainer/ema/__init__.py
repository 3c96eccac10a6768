"""Averages of the weights: of constant decay, of power functions, and any made after the run."""
