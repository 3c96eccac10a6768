"""Checkpoints: RUN version 1 on disk, resume, export."""
