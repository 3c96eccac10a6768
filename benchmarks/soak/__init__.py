"""Fuzzing with a seed: damaged files and answers through the code that meets them first."""
