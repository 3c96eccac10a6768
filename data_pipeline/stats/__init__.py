"""What is in a DATASET or a selection of it: counts, quantiles, histograms."""
