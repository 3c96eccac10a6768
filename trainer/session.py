"""One run in one process: model, engine, average and progress, and how they are saved together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from base.errors import Diverged, UserError
from base.hashing import stable_hash
from trainer.batch import Batch
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.read import Checkpoint, SliceReader
from trainer.checkpoint.resume import adopt, newest_checkpoint
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshots import remove_later_snapshots, write_snapshot
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.write import Snapshot
from trainer.config import AnyTrainConfig
from trainer.ema.average import Ema
from trainer.ema.profiles import KIND
from trainer.engine.base import Engine, Flat, StepStats, fill
from trainer.objectives.base import Objective
from trainer.record import require_same_run
from trainer.rng import SampleRandom
from trainer.state import TrainState, Window

MOST_SKIPPED = 20  # steps in a row without a finite loss and gradient


class Session:
    """Takes steps and saves them. Every process of a run has one, and all do the same."""

    def __init__(
        self,
        config: AnyTrainConfig,
        objective: Objective,
        engine: Engine,
        facts: Mapping[str, Any],
        epoch_size: int,
    ) -> None:
        self.config, self.objective, self.engine, self.facts = config, objective, engine, facts
        self.epoch_size = epoch_size  # samples
        self.state = TrainState(config.seed)
        self.ema = Ema(engine.flats(), config.ema)
        self.saved_at: int | None = None  # samples of the last checkpoint, complete or begun
        self._retention = Retention.of(config.train)
        self._since_save = Window()  # never saved: it is empty at every save
        staging = Staging(self._snapshot(), engine) if config.train.async_save else None
        self.saver = Saver(config.out, engine, self._retention, staging)

    def resume(self, warn: Callable[[str], None]) -> int | None:
        """Go on from the newest whole checkpoint; its samples, or None when there is none.

        Raises:
            UserError: all checkpoints are damaged, or they are another run's.
        """
        out = self.config.out
        checkpoint = newest_checkpoint(out, self.engine, warn)
        if checkpoint is not None:
            self._restore(checkpoint)
            adopt(out, checkpoint.folder, self.engine, self._retention, warn)
        remove_later_snapshots(out, self.state.samples, self.engine)
        return self.saved_at

    def _restore(self, checkpoint: Checkpoint) -> None:
        require_same_run(self.facts, checkpoint.manifest.facts, self.config.out)
        _require_shapes(self.engine.flats(), checkpoint.manifest)
        _require_averages(self.ema.kinds, checkpoint.manifest)
        reader = SliceReader(checkpoint)
        self.state = checkpoint.state()
        self.state.advance(0, self.epoch_size)  # the first checkpoints tell no epoch
        self.engine.restore(reader, self.state.steps)
        flats = self.engine.flats()
        self.ema = Ema(flats, self.config.ema)
        fill(self.ema.alone(flats, self.ema.kinds), reader)
        _load_fixed(self.engine.module, reader, checkpoint.manifest)
        self.saved_at = self.state.samples

    def save(self) -> None:
        """Begin a checkpoint of this very moment, unless there is one."""
        if self.saved_at == self.state.samples:
            return
        self.saver.begin(self._snapshot())
        self.saved_at = self.state.samples
        self._since_save = Window()

    def _snapshot(self) -> Snapshot:
        """What this rank holds; its tensors are live."""
        return self._snapshot_of(self.ema.attach(self.engine.flats()))

    def _snapshot_of(self, flats: Sequence[Flat]) -> Snapshot:
        return Snapshot(
            flats=flats,
            fixed=_fixed(self.engine.module) if self.engine.rank == 0 else {},
            state=deepcopy(self.state),
            facts=self.facts,
            loss=self._since_save.mean_loss(),
        )

    def keep_averages(self, before: int) -> None:
        """Keep the power functions' averages every `ema.snapshot_every` samples and at the end.

        `before`: the samples seen before the last step.
        """
        every, samples = self.config.ema.snapshot_every, self.state.samples
        if every is None or self.state.ema_updates == 0:
            return
        if samples < self.config.train.samples and before // every == samples // every:
            return
        powers = [kind for kind in self.ema.kinds if kind != KIND]
        snapshot = self._snapshot_of(self.ema.alone(self.engine.flats(), powers))
        write_snapshot(self.config.out, self.engine, snapshot)

    def step(self, batches: Sequence[Batch], rate: float, requests: Sequence[float]) -> StepStats:
        """One optimizer step over this rank's micro-batches.

        `sums` of the result: the global batch's mean loss, then `requests` summed over ranks, last
        how many ranks' turns of a save are over.
        """
        engine, objective, size = self.engine, self.objective, self.config.train.batch
        _seed_layers(stable_hash(self.state.seed, self.state.samples, engine.rank), engine.device)
        local = [batch.to(engine.device) for batch in batches]
        context = engine.forward(lambda: objective.begin(engine.module, local))
        total = torch.zeros((), device=engine.device)
        for index, batch in enumerate(local):
            loss = engine.forward(lambda: self._loss(batch, context, index) / size)  # noqa: B023
            engine.backward(loss)
            total += loss.detach()
        asked = torch.tensor([*requests, self.saver.over], dtype=torch.float32)
        sums = torch.cat([total.reshape(1), asked.to(engine.device, non_blocking=True)])
        return engine.step(rate, sums)

    def _loss(self, batch: Batch, context: object | None, index: int) -> Tensor:
        """The sum of a micro-batch's losses."""
        random = SampleRandom(self.state.seed, batch.positions)
        return self.objective.loss(self.engine.module, batch, random, context, index).sum()

    def count(self, stats: StepStats) -> None:
        """Bring average, progress and a save that is under way up to date with a step.

        Raises:
            Diverged: too many steps in a row changed nothing.
            UserError: a checkpoint could not be written.
        """
        state, size = self.state, self.config.train.batch
        self.saver.advance(stats.sums[-1])
        if stats.applied:
            self.ema.update(state.ema_updates)
            state.ema_updates += 1
            state.steps += 1
            state.skipped_in_row = 0
            for window in (state.window, self._since_save):
                window.add(size, stats.sums[0], stats.grad_norm)
        else:
            state.skip(size)
        state.advance(size, self.epoch_size)
        if state.skipped_in_row >= MOST_SKIPPED:
            self.saver.finish()
            raise Diverged(
                f"{self.config.out}: loss or gradient was not finite for {MOST_SKIPPED} steps in "
                f"a row, up to {state.samples} samples; lower optim.lr or look at the data"
            )


def _seed_layers(seed: int, device: torch.device) -> None:
    """Seed what layers draw themselves (dropout); torch.manual_seed costs a millisecond."""
    torch.default_generator.manual_seed(seed >> 1)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed >> 1)


def _require_shapes(flats: Sequence[Flat], manifest: Manifest) -> None:
    for flat in flats:
        for piece in flat.pieces:
            stored = manifest.tensors.get(piece.name)
            if stored is None or stored.shape != piece.shape:
                found = "nothing" if stored is None else str(list(stored.shape))
                raise UserError(
                    f"checkpoint: {piece.name}: got {found}, expected {list(piece.shape)}"
                )


def _require_averages(kinds: Sequence[str], manifest: Manifest) -> None:
    """An average that begins in the middle would not be that of the run."""
    for kind in kinds:
        if kind not in manifest.kinds:
            there = ", ".join(item for item in manifest.kinds if item.startswith(KIND))
            raise UserError(
                f"ema.powers: {kind} was not averaged from the run's beginning, and cannot be "
                f"begun at {manifest.samples} samples; there are: {there}"
            )


def _fixed(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of the state dict that no optimizer changes."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    state = module.state_dict()
    return {name: state[name].detach() for name in sorted(set(state) - trained)}


def _load_fixed(module: nn.Module, reader: SliceReader, manifest: Manifest) -> None:
    for name, tensor in _fixed(module).items():
        if name in manifest.fixed:
            tensor.copy_(reader.fixed(name))
