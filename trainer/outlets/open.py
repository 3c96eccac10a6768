"""The outlets that a config asks for."""

from __future__ import annotations

import sys

from base.errors import UserError
from trainer.config import AnyTrainConfig
from trainer.outlets.base import Outlet
from trainer.outlets.prometheus import Prometheus
from trainer.outlets.tensorboard import TensorBoard
from trainer.outlets.wandb import WandB


def open_outlets(config: AnyTrainConfig, start: int) -> list[Outlet]:
    """Open the outlets of a run's session that begins at `start` samples.

    A port that is taken is told, and done without: a run is worth more than being watched.

    Raises:
        UserError: a package is missing.
    """
    outlets: list[Outlet] = [TensorBoard(config.out, start)]
    if config.log.wandb is not None:
        outlets.append(WandB(config.out, config.log.wandb, config.model_dump(mode="json")))
    if config.log.prometheus_port is not None:
        try:
            outlets.append(Prometheus(config.out.absolute().name, config.log.prometheus_port))
        except UserError as error:
            print(f"warning: {error}; the run goes on without", file=sys.stderr)
    return outlets
