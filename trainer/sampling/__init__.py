"""Pictures from trained cascades: what `unclip generate` does, under the same names in Python.

A name is imported when it is asked for: the command tells its help without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cascade import Cascade, load_cascade
    from .config import CascadeConfig, load_cascade_config
    from .inputs import fitted, read_picture
    from .painting import inpaint, outpaint
    from .principal import principal_directions
    from .uses import interpolate, interpolate_texts, pca, reconstruct, text, text_diff, variations

__all__ = [
    "Cascade",
    "CascadeConfig",
    "fitted",
    "inpaint",
    "interpolate",
    "interpolate_texts",
    "load_cascade",
    "load_cascade_config",
    "outpaint",
    "pca",
    "principal_directions",
    "read_picture",
    "reconstruct",
    "text",
    "text_diff",
    "variations",
]

_ELSEWHERE = {  # than in `uses`
    "Cascade": "cascade",
    "CascadeConfig": "config",
    "fitted": "inputs",
    "inpaint": "painting",
    "load_cascade": "cascade",
    "load_cascade_config": "config",
    "outpaint": "painting",
    "principal_directions": "principal",
    "read_picture": "inputs",
}

if not TYPE_CHECKING:  # a type checker would believe in any name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_ELSEWHERE.get(name, 'uses')}", __name__), name)
