"""Runs the command: python -m unclip."""

from unclip.cli import main

if __name__ == "__main__":
    main()
