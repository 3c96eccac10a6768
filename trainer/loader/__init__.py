"""The loader: which sample stands at which position, and its bytes as tensors."""
