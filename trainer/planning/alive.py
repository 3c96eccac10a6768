"""How many bytes are alive at once while operations run; tensors without storage count alike."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that is made in its block, backward passes included, to its end.

    `peak` is the most bytes that were alive at once, tensors in `there` not counted.
    """

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0  # bytes
        self._there = [tensor.untyped_storage() for tensor in there]  # kept, so that no id returns
        self._known = {storage._cdata for storage in self._there}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._meet, result)
        return result

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._part, storage._cdata, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _part(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size
