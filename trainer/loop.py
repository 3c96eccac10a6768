"""The training loop: one for every stage, handed a model and an objective."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from base.errors import Stopped, UserError, may_pass, retold
from base.hashing import stable_hash
from base.lease import Lease, require_held
from base.progress import Progress
from base.stop import StopFlag
from trainer.checkpoint.agree import Alone
from trainer.checkpoint.folders import complete_checkpoints
from trainer.checkpoint.origin import parse_origin
from trainer.checkpoint.resume import adopt, newest_checkpoint
from trainer.checkpoint.retention import Retention
from trainer.config import AnyTrainConfig
from trainer.engine.base import Engine, StepStats
from trainer.engine.open import micro_batches, open_engine
from trainer.engine.processes import environment_rank, environment_world_size, local_device
from trainer.events import Events
from trainer.guards.disk import Disk
from trainer.guards.divergence import Divergence
from trainer.guards.heartbeat import Heartbeat
from trainer.guards.report import remove_old_report
from trainer.guards.stragglers import Stragglers
from trainer.guards.watch import Watch
from trainer.loader.catalogue import Catalogue
from trainer.loader.plan import Plan
from trainer.loader.steps import Coming, Loader
from trainer.metrics import Metrics
from trainer.optim import learning_rate
from trainer.outlets.open import open_outlets
from trainer.planning.speed import Speed
from trainer.record import (
    require_fitting_data,
    require_same_run,
    run_facts,
    unused_changes,
    write_record,
)
from trainer.saves import Saves
from trainer.session import Session
from trainer.stages import STAGES, Parts
from trainer.state import TrainState, Window

_LINES = 200  # of metrics in a run, when the config does not say


@dataclass(frozen=True)
class TrainResult:
    """Where a complete run ended."""

    out: Path
    samples: int
    steps: int
    skipped: int  # samples left out because loss or gradient was not finite
    seconds: float  # of training, over all sessions
    resumed_from: int | None  # samples of the checkpoint that this session began at


def train(config: AnyTrainConfig) -> TrainResult:
    """Train one stage to its end, from its last checkpoint if there is one.

    Every process of a distributed run calls this. SIGTERM, SIGUSR2 and SIGINT save first.

    Raises:
        UserError: the config, the data or the folder do not fit.
        Diverged: the loss was lost, and no return to a checkpoint helps; the last one stays.
        Stopped: stopped on request by the system; KeyboardInterrupt: from the keyboard.
    """
    with ExitStack() as stack:
        first = environment_rank() == 0
        if first:
            stack.enter_context(Lease(config.out))
        stack.enter_context(_threads(config.train.threads))
        stack.enter_context(torch.random.fork_rng())
        stop = stack.enter_context(StopFlag())
        result = _finished(config) or _train(config, stop)
        if first:
            STAGES[config.stage].finish(config.out, config)
        stop.raise_if_requested()  # too late to end this run early; not to end what called it
        return result


def build_parts(config: AnyTrainConfig, device: torch.device) -> Parts:
    """Model and objective of a config; the same weights in every process.

    Raises:
        UserError: the config's values do not go together.
    """
    torch.manual_seed(stable_hash(config.seed, "weights") >> 1)
    try:
        parts = STAGES[config.stage].build(config, device)
    except ValueError as error:  # values that are each right and do not go together
        raise UserError(f"{config.stage}: {error}") from error
    parts.model.train()
    return parts


def _finished(config: AnyTrainConfig) -> TrainResult | None:
    """The result of a run that has nothing left to do; found by a process that is alone."""
    done = complete_checkpoints(config.out)
    if environment_world_size() > 1 or not done or int(done[-1].name) < config.train.samples:
        return None
    ranks = Alone()
    checkpoint = newest_checkpoint(config.out, ranks, _warn)
    if checkpoint is None or checkpoint.manifest.samples < config.train.samples:
        return None
    facts = run_facts(config, Catalogue(config.data, config.seed))
    require_same_run(facts, checkpoint.manifest.facts, config)
    adopt(config.out, checkpoint.folder, ranks, Retention.of(config.train), _warn)
    _tell_unused(config)
    remove_old_report(config.out, checkpoint.manifest.samples)
    return _result(config, checkpoint.state(), checkpoint.manifest.samples)


def _train(config: AnyTrainConfig, stop: StopFlag) -> TrainResult:
    catalogue = Catalogue(config.data, config.seed)
    facts = run_facts(config, catalogue)
    device = local_device()
    parts = build_parts(config, device)
    require_fitting_data(config, parts.objective.needs, catalogue.infos)
    try:
        engine = open_engine(parts.model, config.optim, config.train, device)
    except UserError:
        stop.raise_if_requested()  # a signal to all processes ends a compiler too
        raise
    try:
        session = Session(config, parts.objective, engine, facts, catalogue.epoch_size)
        resumed_from = session.resume(_warn)
        if engine.rank == 0:
            _tell(config, resumed_from)
        if resumed_from is None and config.init_from is not None:
            session.begin_with(parse_origin(config.init_from))
        elif resumed_from is None:
            STAGES[config.stage].fit(config, engine, catalogue)
        if engine.rank == 0:
            _record(config, engine, resumed_from)
        with session.saver:
            _run(session, stop)
        return _result(config, session.state, resumed_from)
    finally:
        engine.close()


def _record(config: AnyTrainConfig, engine: Engine, resumed_from: int | None) -> None:
    """On the first rank: what this session trains with, if it trains at all."""
    remove_old_report(config.out, resumed_from or 0)
    if resumed_from is not None and resumed_from >= config.train.samples:
        _tell_unused(config)
    else:
        write_record(config, engine.device, engine.world_size)


def _tell_unused(config: AnyTrainConfig) -> None:
    """What of the config a complete run makes no use of: nothing is trained any more."""
    for change in unused_changes(config):
        _warn(f"{change}; the run in {config.out} is complete, choose another `out` for another")


def _tell(config: AnyTrainConfig, resumed_from: int | None) -> None:
    """Whether a run begins or goes on: a folder that was moved would begin anew where it was."""
    how = "begins" if resumed_from is None else f"goes on at {resumed_from:,} samples"
    print(f"{config.out}: {how}", file=sys.stderr)


def _run(session: Session, stop: StopFlag) -> None:
    """Take steps until the run's samples are seen or somebody asks to stop."""
    config = session.config
    size, total = config.train.batch, config.train.samples
    log_every = config.train.log_every or max(total // _LINES, size)
    save_every = config.train.checkpoint_every or sys.maxsize
    divergence = Divergence(session, _warn)
    speed = Speed(config, session.engine) if session.engine.rank == 0 else None
    events = Events(config.out if session.engine.rank == 0 else None)
    # The loader first, so that no worker is forked beside another thread.
    with (
        _loader(session) as loader,
        _metrics(session) as metrics,
        _bar(session) as bar,
        _heartbeat(session) as heartbeat,
        Stragglers(session.engine, config.out) as stragglers,
    ):
        saves = Saves(session, metrics, heartbeat, events, _warn)
        events.begins(session.state.samples, session.engine.world_size)
        last, due = time.monotonic(), False
        heartbeat.enter("loader", session.state.samples)
        coming = Coming(loader)
        _require_readable(session, coming)
        for batches in coming:
            state = session.state
            before = state.samples
            rate = learning_rate(config.optim, before + size, total)
            waited = loader.take_waited()
            heartbeat.enter("step", before, waited)
            own = stragglers.own(waited + session.forward_seconds)
            stats = session.step(batches, rate, [*_requests(stop, coming), *own])
            stragglers.stop_watching()
            require_held(config.out)
            session.count(stats)
            events.stepped(state.samples)
            stragglers.add(stats.sums[4:])
            saves.show()
            now = time.monotonic()
            state.pass_time(now - last, waited)
            last = now
            if bar is not None:
                bar.advance(size, loss=stats.sums[0], lr=rate)
            if _crossed(before, state.samples, log_every) or state.samples >= total:
                window, slow = state.take_window(), stragglers.take()
                if metrics is not None and speed is not None:
                    metrics.write(state, window, rate, {**_more(session, speed, window), **slow})
            divergence.look(stats)
            session.keep_averages(before)  # first: what lies beyond a checkpoint is dropped
            _end_where_agreed(session, stats, saves, coming, events)
            due |= _crossed(before, state.samples, save_every)
            if due and not state.skipped_in_row:  # among steps that change nothing it waits
                saves.begin()
                due = False
            heartbeat.enter("loader", state.samples)
            stragglers.watch()
        saves.begin()
        saves.end()
        saves.show()


def _end_where_agreed(
    session: Session, stats: StepStats, saves: Saves, coming: Coming, events: Events
) -> None:
    """Ends the run where a rank was asked to stop or cannot read on; what was learned is saved."""
    if stats.sums[1]:
        events.asked(session.state.samples)
        saves.end()
        _stop(stats, session.config.out)
    if stats.sums[3]:
        if not session.state.skipped_in_row:
            saves.end()
        _require_readable(session, coming)


def _require_readable(session: Session, coming: Coming) -> None:
    """Asks all ranks whether the next step's data are there.

    Raises:
        UserError: what one of them cannot read; on all ranks alike.
    """
    own = coming.failure
    failures = session.engine.gather(own and (str(own), may_pass(own)))
    if own is not None and len(failures) == 1:
        raise own
    for rank, failure in enumerate(failures):
        if failure is not None:
            why, passing = failure
            raise retold(f"{why} (rank {rank})", passing) from own


def _loader(session: Session) -> Loader:
    config, engine = session.config, session.engine
    left = max(config.train.samples - session.state.samples, 0)
    plan = Plan(
        data=config.data,
        needs=session.objective.needs,
        seed=config.seed,
        start=session.state.samples,
        batch=config.train.batch,
        steps=math.ceil(left / config.train.batch),
        rank=engine.rank,
        world_size=engine.world_size,
        micro_batches=micro_batches(config.train, engine.world_size),
    )
    return Loader(plan, config.train.workers, config.train.read_ahead)


def _metrics(session: Session) -> AbstractContextManager[Metrics | None]:
    """The run's metrics, on the first rank."""
    if session.engine.rank != 0:
        return nullcontext(None)
    start = session.state.samples
    return Metrics(session.config.out, start, open_outlets(session.config, start))


def _more(session: Session, speed: Speed, window: Window) -> dict[str, float | None]:
    """What a line of metrics tells beside the window's sums."""
    decay = session.ema.decay(session.state.ema_updates)
    return {"ema_decay": decay, **speed.numbers(window.samples_per_second)}


def _bar(session: Session) -> AbstractContextManager[Progress | None]:
    """The progress bar, on the first rank."""
    config = session.config
    if session.engine.rank != 0:
        return nullcontext(None)
    name = config.out.absolute().name
    return Progress(name, config.train.samples, "samples", session.state.samples)


def _heartbeat(session: Session) -> Heartbeat:
    """Tells where this rank is; on the first one, who keeps others waiting, and a full disk.

    The second one looks after the first.
    """
    config, rank = session.config, session.engine.rank
    patience = config.guards.hang_after_s
    disk = Disk(session, _warn)
    looks: list[Callable[[], None]] = []
    if rank == 0:
        looks = [Watch(config.out, session.engine.world_size, patience, _warn).look, disk.look]
    elif rank == 1:
        looks = [Watch(config.out, 1, patience, _warn, silent=True).look]
    return Heartbeat(config.out, rank, patience, looks)


def _requests(stop: StopFlag, coming: Coming) -> list[float]:
    """[asked to stop, asked from the keyboard, next data unreadable], for all to agree on."""
    unreadable = coming.failure is not None
    return [float(stop.requested), float(stop.signal is signal.SIGINT), float(unreadable)]


def _stop(stats: StepStats, out: Path) -> None:
    if stats.sums[2]:
        raise KeyboardInterrupt
    raise Stopped(f"{out}: stopped on request and saved; the same command goes on")


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _result(config: AnyTrainConfig, state: TrainState, resumed_from: int | None) -> TrainResult:
    skipped = sum(end - start for start, end in state.skipped)
    return TrainResult(config.out, state.samples, state.steps, skipped, state.seconds, resumed_from)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    earlier = torch.get_num_threads()
    torch.set_num_threads(count or earlier)
    try:
        yield
    finally:
        torch.set_num_threads(earlier)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
