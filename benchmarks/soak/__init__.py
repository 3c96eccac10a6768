"""Fuzzing with a seed: damaged pictures, tars and tables through the code that meets them first."""
