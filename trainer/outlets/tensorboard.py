"""TensorBoard's files in a RUN."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard:
    """Curves over samples; what earlier sessions wrote after `start` samples is dropped."""

    def __init__(self, run: Path, start: int) -> None:
        self._run, self._start = run, start

    def write(self, samples: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._curves.add_scalar(name, value, samples)
        self._curves.flush()

    def show(self, picture: Tensor, samples: int) -> None:
        self._curves.add_image("pictures", picture, samples)
        self._curves.flush()

    def close(self) -> None:
        if "_curves" in self.__dict__:
            self._curves.close()

    @cached_property
    def _curves(self) -> SummaryWriter:
        """Opened with the first line, so that no process is forked beside its thread."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        folder = self._run / FOLDER
        _wait_for_a_new_second(folder)
        # TensorBoard drops what earlier files have from `purge_step` on.
        return SummaryWriter(str(folder), purge_step=self._start + 1)


def _wait_for_a_new_second(folder: Path) -> None:
    """Sleep until a new file's name sorts behind those of the folder, a second at most.

    TensorBoard reads files in the order of their names, which have the second, the host, the
    process and a number that sorts as text: of a second's files, an earlier session's may be last.
    """
    seconds = [file.name.split(".")[3] for file in folder.glob("events.out.tfevents.*")]
    last = max((int(second) for second in seconds if second.isdigit()), default=0)
    now = time.time()
    if last == int(now):
        time.sleep(last + 1 - now)
