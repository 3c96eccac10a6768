"""The DATASETs of a run: which sample stands at a position, and who reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from base.errors import UserError
from base.places import folder_place
from data_pipeline.schema import dataset as schema
from trainer.config import DataConfig
from trainer.loader.mixture import Mixture, columns_of
from trainer.loader.order import Order, Shuffle
from trainer.loader.shards import Shards, find_shards


@dataclass(frozen=True)
class Pool:
    """Shards that are shuffled as one; `first` is the number of its first sample in the run."""

    shards: Shards
    order: Order
    first: int


class Catalogue:
    """All DATASETs of a config, opened: their totals alone are read."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        """Without weights the DATASETs are one pool; with them each is one of its own.

        Raises:
            UserError: a folder is no complete DATASET, or has no such selection; weights that the
                streams cannot give.
            NothingUsable: there is no sample.
        """
        self.roots = [folder_place(path) for path in config.paths]
        self.infos = [schema.read_dataset(root) for root in self.roots]
        weights = config.weights or (1.0,)
        columns = _columns(weights, config.streams)
        self.mixture = Mixture(columns)
        self.pools: list[Pool] = []
        self.epoch_size = 0  # samples of all pools
        alone = [slice(number, number + 1) for number in range(len(weights))]
        for number, part in enumerate(alone if config.weights else [slice(None)]):
            refs = find_shards(self.roots[part], self.infos[part], config.selection)
            share = columns.count(number) if len(weights) > 1 else config.streams
            shuffle = Shuffle(
                share, config.shuffle_block, config.shuffle_run, config.shuffle_buffer
            )
            order = Order([ref.size for ref in refs], seed, shuffle)
            kept = order.streams * (config.shuffle_block + 1)
            self.pools.append(Pool(Shards(refs, config.embeddings, kept), order, self.epoch_size))
            self.epoch_size += order.epoch_size

    def name(self, number: int) -> str:
        """Where sample `number` of all pools is stored."""
        pool = next(pool for pool in reversed(self.pools) if pool.first <= number)
        return pool.shards.name(number - pool.first)


def _columns(weights: Sequence[float], streams: int) -> list[int]:
    try:
        return columns_of(weights, streams)
    except ValueError as error:
        raise UserError(f"data.{error}") from error
