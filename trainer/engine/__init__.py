"""Engines: what runs a model's steps, on one process or on many."""
