"""Which checkpoints a cascade's networks are read from."""

from __future__ import annotations

from pathlib import Path

from base.errors import UserError
from trainer.checkpoint.read import Checkpoint, resolve_checkpoint

from .config import CascadeConfig, NetworkConfig, with_networks


def checkpoint_of(part: str, network: NetworkConfig) -> Checkpoint:
    """The checkpoint that a network of a part, such as `prior`, is read from.

    Raises:
        UserError: no such run or checkpoint.
    """
    run = Path(network.run)
    if not run.is_dir():
        raise UserError(f"{part}.run: no such RUN folder: {run}")
    return resolve_checkpoint(run, network.samples)


def at_checkpoints(config: CascadeConfig) -> CascadeConfig:
    """The same cascade, each network at a sample count: of the latest where it names none.

    Raises:
        UserError: as `checkpoint_of` does.
    """
    return with_networks(
        config, lambda part, network: {"samples": checkpoint_of(part, network).manifest.samples}
    )
