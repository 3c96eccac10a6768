"""Pairs in, webdataset shards and CLIP embeddings out."""
