"""Reading a config of diffusers': what our networks cannot express is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A class of diffusers' and the arguments of its constructor that matter here.

    `free` are those that become settings of ours, with diffusers' defaults; `fixed` those that our
    network has at one value alone: (diffusers' default, the value).
    """

    name: str
    free: Mapping[str, Any]
    fixed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The free settings, lists as tuples, defaults filled in.

        Raises:
            ValueError: a fixed setting has another value, or one is not known and not null.
        """
        given = {name: _plain(value) for name, value in config.items() if name[:1] != "_"}
        for name, (default, needed) in self.fixed.items():
            expect(f"{self.name}.{name}", given.get(name, default), needed)
        for name, value in given.items():
            if name not in self.free and name not in self.fixed and value is not None:
                raise ValueError(f"{self.name}.{name}: got {value!r}, an unknown setting")
        return {name: given.get(name, default) for name, default in self.free.items()}

    def write(self, free: Mapping[str, Any]) -> dict[str, Any]:
        """The whole config of such a network, as its config.json has it."""
        fixed = {name: needed for name, (_, needed) in self.fixed.items()}
        return {"_class_name": self.name, **fixed, **free}


def expect(field: str, got: Any, expected: Any) -> None:
    """Refuses a setting with another value than the one expected.

    Raises:
        ValueError: naming the field and both values.
    """
    if got != expected:
        raise ValueError(f"{field}: got {got!r}, expected {expected!r}")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
