"""What `verify` finds wrong."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Problems:
    """What is wrong, each a line that begins with the file."""

    found: list[str] = field(default_factory=list)

    def add(self, where: object, what: str) -> None:
        """Records a problem."""
        self.found.append(f"{where}: {what}")

    def expect(self, where: object, what: str, got: object, expected: object) -> None:
        """Records a problem when two values differ."""
        if got != expected:
            self.add(where, f"{what}: got {got}, expected {expected}")
