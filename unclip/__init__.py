"""The front door: the `unclip` command, the demo and the doctor."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("unclip")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
