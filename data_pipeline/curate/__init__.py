"""Curation: which rows of a DATASET to train on, by rules, with an account of every drop."""
