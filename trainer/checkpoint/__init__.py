"""Checkpoints of RUN version 1: written whole or not at all, read on any number of ranks."""
