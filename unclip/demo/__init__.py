"""`unclip demo`: the whole system at tiny scale, from captions to pictures and a report."""

from unclip.demo.cli import app

__all__ = ["app"]
