"""Engines: who holds which part of the weights, and how a step is taken. All show one face."""
