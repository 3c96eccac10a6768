"""One run in one process: model, engine, average and progress, and how they are saved together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base.errors import UserError
from base.hashing import stable_hash
from trainer.batch import Batch
from trainer.checkpoint.folders import complete_checkpoints
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.origin import Origin, find_weights
from trainer.checkpoint.read import Checkpoint, SliceReader, faults, open_checkpoint
from trainer.checkpoint.resume import adopt, newest_checkpoint
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.saver import Saver, Series, checkpoints
from trainer.checkpoint.snapshots import remove_later_snapshots, snapshots
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.write import Snapshot
from trainer.config import AnyTrainConfig
from trainer.ema.average import Ema
from trainer.ema.profiles import KIND
from trainer.engine.base import Engine, Flat, Reader, StepStats, fill
from trainer.objectives.base import Objective
from trainer.optim import MOMENTS
from trainer.record import require_same_run
from trainer.rng import SampleRandom
from trainer.state import BUCKETS, LossScale, TrainState, Window


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
        self._require_scale()
        self.ema = Ema(engine.flats(), config.ema)
        self.saved_at: int | None = None  # samples of the last checkpoint, complete or begun
        self.forward_seconds = 0.0  # of the last step, before others are waited for
        self._own_loss = torch.zeros(())
        self._retention = Retention.of(config.train)
        self._since_save = Window()  # never saved: it is empty at every save
        self.saver = Saver(config.out, engine, threaded=config.train.async_save)
        staging = self._staging(self._snapshot())
        self._checkpoints = checkpoints(config.out, self._retention, staging)
        self._snapshots: Series | None = None
        if config.ema.snapshot_every is not None:
            self._snapshots = snapshots(config.out, self._staging(self._averages()))

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

    def roll_back(self, warn: Callable[[str], None]) -> int | None:
        """Go back to the newest checkpoint of good health, leave out the data since, and save.

        The save is what a run that is killed afterwards remembers it by. Gives the checkpoint's
        samples; None when there is none, and nothing has changed.
        """
        self.finish_save()
        folder = None
        if self.engine.rank == 0:
            folder = self._newest_of_good_health(warn)
        folder = self.engine.gather(folder)[0]
        if folder is None:
            return None
        passed = self.state
        self._restore(open_checkpoint(folder))
        found, self._since_save = self.state.samples, Window()
        remove_later_snapshots(self.config.out, found, self.engine)
        self.state.leave_out_until(passed, self.epoch_size)
        self.save()
        self.finish_save()
        return found

    def _newest_of_good_health(self, warn: Callable[[str], None]) -> Path | None:
        """The newest whole checkpoint that was not taken amid steps that changed nothing.

        One of the schedule if there is any: an uninterrupted run has no others.
        """
        spare = None
        for folder in reversed(complete_checkpoints(self.config.out)):
            try:
                checkpoint = open_checkpoint(folder)
                problems = faults(checkpoint)
                if not problems and checkpoint.state().skipped_in_row == 0:
                    if self._is_scheduled(checkpoint.state()):
                        return folder
                    spare = spare or folder
            except UserError as error:
                problems = [str(error)]
            for problem in problems[:1]:
                warn(f"checkpoint {folder.name} is damaged and passed over: {problem}")
        return spare

    def _is_scheduled(self, state: TrainState) -> bool:
        """Whether a run that nobody stops has a checkpoint here."""
        if state.rollbacks and state.rollbacks[-1].at == state.samples:
            return True
        train = self.config.train
        every = train.checkpoint_every
        return every is not None and state.samples % every < train.batch

    def begin_with(self, origin: Origin) -> None:
        """Take the weights that a new run begins with; optimizer and counters start anew.

        Raises:
            UserError: there are none, or they are another model's; all ranks raise alike.
        """
        fixed = _fixed(self.engine.module)
        wanted = {name: tuple(tensor.shape) for name, tensor in fixed.items()}
        for part in self.engine.gather(_shapes(self.engine.flats())):
            wanted |= part
        weights, record = find_weights(self.engine, origin, wanted)
        self.facts = {**self.facts, "begun_with": record}

        def read(kind: str, name: str, start: int, count: int) -> Tensor:
            return torch.zeros(count) if kind in MOMENTS else weights.part(name, start, count)

        self.engine.restore(read, steps=0)
        self.ema = Ema(self.engine.flats(), self.config.ema)
        for name, tensor in fixed.items():
            tensor.copy_(weights.part(name, 0, tensor.numel()).view(tensor.shape))

    def _restore(self, checkpoint: Checkpoint) -> None:
        require_same_run(self.facts, checkpoint.manifest.facts, self.config)
        _require_shapes(_shapes(self.engine.flats()), checkpoint.manifest)
        _require_averages(self.ema.kinds, checkpoint.manifest)
        earlier, begun = checkpoint.manifest.facts, ("init_from", "begun_with", "imported")
        self.facts = {**self.facts, **{name: earlier[name] for name in begun if name in earlier}}
        reader = SliceReader(checkpoint)
        self.state = checkpoint.state()
        self._require_scale()
        self.state.advance(0, self.epoch_size)  # the first checkpoints tell no epoch
        self.engine.restore(_moments_or_zero(reader, self.state), self.state.steps)
        flats = self.engine.flats()
        self.ema = Ema(flats, self.config.ema)
        fill(self.ema.alone(flats, self.ema.kinds), reader)
        _load_fixed(self.engine.module, reader, checkpoint.manifest)
        self.saved_at = self.state.samples

    def _require_scale(self) -> None:
        """A run has a loss scale while it is in fp16; it may go on in another precision."""
        if self.config.train.precision != "fp16":
            self.state.loss_scale = None
        elif self.state.loss_scale is None:
            self.state.loss_scale = LossScale()

    def save(self) -> None:
        """Begin a checkpoint of this very moment, unless there is one."""
        if self.saved_at == self.state.samples:
            return
        begun = time.monotonic()
        self.saver.begin(self._checkpoints, self._snapshot())
        self.saved_at = self.state.samples
        self._since_save = Window()
        self.state.window.stalled += time.monotonic() - begun

    def finish_checkpoint(self) -> None:
        """Wait until a checkpoint that has begun is complete, and the snapshots before it.

        Raises:
            UserError: one could not be written; all ranks raise alike.
        """
        begun = time.monotonic()
        self.saver.wait_for(self._checkpoints)
        self.state.window.stalled += time.monotonic() - begun

    def finish_save(self) -> None:
        """Wait until all that has begun is complete.

        Raises:
            UserError: it could not be written; all ranks raise alike.
        """
        begun = time.monotonic()
        self.saver.finish()
        self.state.window.stalled += time.monotonic() - begun

    def take_complete(self) -> int | None:
        """Samples of the newest checkpoint that became complete since this was last asked."""
        return self.saver.take_complete(self._checkpoints)

    def _staging(self, like: Snapshot) -> Staging | None:
        return Staging(like, self.engine) if self.config.train.async_save else None

    def _snapshot(self) -> Snapshot:
        """What this rank holds; its tensors are live."""
        return self._snapshot_of(self.ema.attach(self.engine.flats()))

    def _averages(self) -> Snapshot:
        """What this rank holds of the power functions' averages; its tensors are live."""
        powers = [kind for kind in self.ema.kinds if kind != KIND]
        return self._snapshot_of(self.ema.alone(self.engine.flats(), powers))

    def _snapshot_of(self, flats: Sequence[Flat]) -> Snapshot:
        return Snapshot(
            flats=flats,
            fixed=_fixed(self.engine.module) if self.engine.rank == 0 else {},
            state=deepcopy(self.state),
            facts=self.facts,
            loss=self._since_save.mean_loss(),
        )

    def keep_averages(self, before: int) -> None:
        """Begin a snapshot of the power functions' averages, where `ema.snapshot_every` has one.

        That is also the run's end. `before`: the samples seen before the last step.

        Raises:
            UserError: it could not be written; all ranks raise alike.
        """
        every, samples = self.config.ema.snapshot_every, self.state.samples
        if every is None or self._snapshots is None or self.state.ema_updates == 0:
            return
        if samples < self.config.train.samples and before // every == samples // every:
            return
        begun = time.monotonic()
        self.saver.begin(self._snapshots, self._averages())
        self.state.window.stalled += time.monotonic() - begun

    def step(self, batches: Sequence[Batch], rate: float, requests: Sequence[float]) -> StepStats:
        """One optimizer step over this rank's micro-batches.

        `sums` of the result: the global batch's mean loss, then `requests` summed over ranks, then
        what `Window.add` takes as `by_time`, last how many ranks' turns of a save are over.
        """
        engine, objective, size = self.engine, self.objective, self.config.train.batch
        if self.state.loss_scale is not None:
            engine.scale = self.state.loss_scale.value
        _seed_layers(stable_hash(self.state.seed, self.state.samples, engine.rank), engine.device)
        local = [batch.to(engine.device) for batch in batches]
        context = engine.forward(lambda: objective.begin(engine.module, local))
        total = torch.zeros((), device=engine.device)
        self.forward_seconds = 0.0
        by_time = torch.zeros(2, BUCKETS, device=engine.device)
        for index, batch in enumerate(local):
            begun = time.perf_counter()
            loss = engine.forward(lambda: self._loss(batch, context, index, by_time) / size)  # noqa: B023
            self.forward_seconds += time.perf_counter() - begun
            engine.backward(loss)
            total += loss.detach()
        self._own_loss = total
        asked = torch.tensor([*requests, self.saver.over], dtype=torch.float32)
        asked = asked.to(engine.device, non_blocking=True)
        sums = torch.cat([total.reshape(1), asked[:-1], by_time.flatten(), asked[-1:]])
        return engine.step(rate, sums)

    def _loss(self, batch: Batch, context: object | None, index: int, by_time: Tensor) -> Tensor:
        """The sum of a micro-batch's losses; `by_time` is told when in the diffusion they are."""
        random = SampleRandom(self.state.seed, batch.positions)
        losses = self.objective.loss(self.engine.module, batch, random, context, index)
        times = self.objective.times(random)
        if times is not None:
            parts = torch.arange(BUCKETS, device=times.device)
            here = (times * BUCKETS).long()[:, None] == parts  # [B, parts]
            by_time[0] += torch.where(here, losses.detach()[:, None], 0.0).sum(0)
            by_time[1] += here.sum(0)
        return losses.sum()

    def own_loss(self) -> float:
        """This rank's part of the last step's loss; waits for the device."""
        return self._own_loss.item()

    def count(self, stats: StepStats) -> None:
        """Bring average, progress and a save that is under way up to date with a step.

        Raises:
            UserError: a checkpoint could not be written.
        """
        state, size = self.state, self.config.train.batch
        scale = state.loss_scale
        self.saver.advance(stats.sums[-1])
        if stats.applied:
            self.ema.update(state.ema_updates)
            state.ema_updates += 1
            state.steps += 1
            state.skipped_in_row = 0
            for window in (state.window, self._since_save):
                by_time = stats.sums[-2 * BUCKETS - 1 : -1]
                window.add(size, stats.sums[0], stats.grad_norm, by_time)
        elif scale is not None and stats.overflowed and scale.can_fall:
            state.overflowed += size
        else:
            state.skip(size)
        if scale is not None and (stats.applied or stats.overflowed):
            scale.update(stats.overflowed)
        state.advance(size, self.epoch_size)


def _seed_layers(seed: int, device: torch.device) -> None:
    """Seed what layers draw themselves (dropout); torch.manual_seed costs a millisecond."""
    torch.default_generator.manual_seed(seed >> 1)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed >> 1)


def _shapes(flats: Sequence[Flat]) -> dict[str, tuple[int, ...]]:
    """Of the whole tensors that this rank holds a range of."""
    return {piece.name: tuple(piece.shape) for flat in flats for piece in flat.pieces}


def _require_shapes(shapes: Mapping[str, tuple[int, ...]], manifest: Manifest) -> None:
    for name, shape in shapes.items():
        stored = manifest.tensors.get(name)
        if stored is None or stored.shape != shape:
            found = "nothing" if stored is None else str(list(stored.shape))
            raise UserError(f"checkpoint: {name}: got {found}, expected {list(shape)}")


def _require_averages(kinds: Sequence[str], manifest: Manifest) -> None:
    """An average that begins in the middle would not be that of the run."""
    for kind in kinds:
        if kind not in manifest.kinds:
            there = ", ".join(item for item in manifest.kinds if item.startswith(KIND))
            raise UserError(
                f"ema.powers: {kind} was not averaged from the run's beginning, and cannot be "
                f"begun at {manifest.samples} samples; there are: {there}"
            )


def _moments_or_zero(reader: SliceReader, state: TrainState) -> Reader:
    """A checkpoint before any step may have no moments, which are zero then."""
    kinds = reader.manifest.kinds

    def read(kind: str, name: str, start: int, count: int) -> Tensor:
        if kind in MOMENTS and kind not in kinds and state.steps == 0:
            return torch.zeros(count)
        return reader(kind, name, start, count)

    return read


def _fixed(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of the state dict that no optimizer changes."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    state = module.state_dict()
    return {name: state[name].detach() for name in sorted(set(state) - trained)}


def _load_fixed(module: nn.Module, reader: SliceReader, manifest: Manifest) -> None:
    for name, tensor in _fixed(module).items():
        if name in manifest.fixed:
            tensor.copy_(reader.fixed(name))
