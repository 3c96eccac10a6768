"""Pictures from what was trained: the cascade and its uses."""
