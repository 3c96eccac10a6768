"""Pictures from trained cascades."""
