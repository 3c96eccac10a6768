"""Finding pictures in a DATASET: a k-NN index made by autofaiss, searches, a page of results."""
