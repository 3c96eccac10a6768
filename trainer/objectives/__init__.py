"""Objectives: small objects that turn a model and a batch into one loss per sample."""
