"""Measures of what was trained: the scene verifier, scores, the report."""
