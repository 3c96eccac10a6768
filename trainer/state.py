"""Where a run stands: everything beside tensors that its continuation depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from base.errors import UserError
from trainer.checkpoint.records import array, integer, mapping, number

_KINDS = {"int": integer, "float": number}
# Fields that the first checkpoints of RUN version 1 do not have.
_LATER = {"epoch", "overflowed", "loss_scale", "rollbacks", "recent"}
_CLEAN = 2000  # steps without an overflow, after which a loss scale is doubled

BUCKETS = 4  # equal parts of the diffusion's time, whose losses are told apart


@dataclass
class Window:
    """Sums since the last line of metrics; they cross an interruption with the rest."""

    steps: int = 0  # applied ones
    samples: int = 0
    loss: float = 0.0  # sum over the window's applied samples
    grad_norm: float = 0.0  # sum over applied steps
    seconds: float = 0.0
    waited: float = 0.0  # seconds spent waiting for the loader
    stalled: float = 0.0  # seconds spent waiting for checkpoints
    by_time: list[float] = field(default_factory=lambda: [0.0] * 2 * BUCKETS)  # losses, samples

    def add(self, samples: int, loss: float, grad_norm: float, by_time: Sequence[float]) -> None:
        """Count an applied step; `loss` is the mean over its samples.

        `by_time`: the sum of losses in each part of the diffusion's time, then how many they are.
        """
        self.steps += 1
        self.samples += samples
        self.loss += loss * samples
        self.grad_norm += grad_norm
        self.by_time = [old + new for old, new in zip(self.by_time, by_time, strict=True)]

    @property
    def samples_per_second(self) -> float:
        """Applied samples in the time of the window."""
        return self.samples / max(self.seconds, 1e-9)

    def mean_loss(self) -> float | None:
        """The mean over the window's applied samples; None when there are none."""
        return self.loss / self.samples if self.samples else None

    def losses_by_time(self) -> list[float | None]:
        """The mean loss in each part of the diffusion's time; None where there is no sample."""
        sums, counts = self.by_time[:BUCKETS], self.by_time[BUCKETS:]
        return [s / n if n else None for s, n in zip(sums, counts, strict=True)]


class Rollback(NamedTuple):
    """A return to an earlier checkpoint; positions are in samples."""

    at: int  # where the run was in trouble, and went on
    to: int  # whose weights it took


@dataclass
class LossScale:
    """What losses are multiplied by in fp16, so that small gradients are not lost.

    Halved when a gradient overflows, doubled after a long time without that (Micikevicius et al.
    2018, section 3.2; the figures are those of torch's GradScaler).
    """

    value: float = 2.0**16
    clean: int = 0  # steps without an overflow since the last change

    @property
    def can_fall(self) -> bool:
        """Whether a gradient that is not finite may be the scale's fault."""
        return self.value > 1

    def update(self, overflowed: bool) -> None:
        """Bring the scale up to date with a step whose loss was finite."""
        self.clean = 0 if overflowed else self.clean + 1
        if overflowed:
            self.value = max(self.value / 2, 1.0)
        elif self.clean == _CLEAN:
            self.value, self.clean = self.value * 2, 0


@dataclass
class TrainState:
    """Progress of a run. `samples` is the position of the next global batch."""

    seed: int
    samples: int = 0
    epoch: int = 0  # of the next sample, from 0; follows from `samples`, kept for those who read
    steps: int = 0  # optimizer steps applied
    ema_updates: int = 0
    seconds: float = 0.0  # of training, over all sessions
    skipped: list[tuple[int, int]] = field(default_factory=list)  # [start, end) of samples
    skipped_in_row: int = 0
    overflowed: int = 0  # samples of steps left out because the loss scale was too large
    loss_scale: LossScale | None = None  # of a run in fp16
    window: Window = field(default_factory=Window)
    rollbacks: list[Rollback] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # losses that a spike is told from

    def advance(self, samples: int, epoch_size: int) -> None:
        """Pass over the next `samples` positions, applied or skipped."""
        self.samples += samples
        self.epoch = self.samples // epoch_size

    def skip(self, samples: int) -> None:
        """Leave the next `samples` positions out, joining neighbours in the record."""
        start, end = self.samples, self.samples + samples
        if self.skipped and self.skipped[-1][1] == start:
            start = self.skipped.pop()[0]
        self.skipped.append((start, end))
        self.skipped_in_row += 1

    def leave_out_until(self, passed: TrainState, epoch_size: int) -> None:
        """Go on where `passed`, a later state of the run, was in trouble, without its steps."""
        self.rollbacks.append(Rollback(passed.samples, self.samples))
        self.skip(passed.samples - self.samples)
        self.advance(passed.samples - self.samples, epoch_size)
        self.skipped_in_row = 0
        self.seconds = passed.seconds
        self.window = Window()  # what it summed up is in the metrics already

    def is_stuck(self) -> bool:
        """Whether no step was applied since the last return to a checkpoint."""
        if not self.rollbacks or not self.skipped:
            return False
        start, end = self.skipped[-1]
        return start < self.rollbacks[-1].at < end

    def pass_time(self, seconds: float, waited: float) -> None:
        """Count time spent on the last step, `waited` of it for the loader."""
        self.seconds += seconds
        self.window.seconds += seconds
        self.window.waited += waited

    def take_window(self) -> Window:
        """The sums so far; a new stretch begins."""
        window, self.window = self.window, Window()
        return window

    def to_json(self) -> dict[str, Any]:
        """Plain data for trainer.json; floats survive exactly."""
        return asdict(self)


def state_from_json(data: Any, where: str) -> TrainState:
    """The state that `to_json` gave.

    Raises:
        UserError: fields are missing or not what they should be.
    """
    names = {entry.name for entry in fields(TrainState)}
    if not isinstance(data, dict) or not names - _LATER <= set(data):
        raise UserError(f"{where}: not a record of a run's progress")
    try:
        known = _checked(TrainState, {name: data[name] for name in names & set(data)})
        known["window"] = Window(**_checked(Window, mapping(data["window"])))
        if known.get("loss_scale") is not None:
            known["loss_scale"] = LossScale(**_checked(LossScale, mapping(data["loss_scale"])))
        known["skipped"] = [_pair(pair) for pair in array(data["skipped"])]
        known["rollbacks"] = [Rollback(*_pair(pair)) for pair in array(data.get("rollbacks", []))]
        known["recent"] = [number(loss) for loss in array(data.get("recent", []))]
        return TrainState(**known)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: not a record of a run's progress ({error})") from error


def _pair(value: Any) -> tuple[int, int]:
    first, second = array(value)
    return integer(first), integer(second)


def _checked(kind: type[TrainState | Window | LossScale], data: dict[str, Any]) -> dict[str, Any]:
    """The values of `data`, counts and numbers looked at; their kinds stand beside the fields."""
    kinds = {entry.name: _KINDS.get(str(entry.type)) for entry in fields(kind)}
    return {name: check(v) if (check := kinds.get(name)) else v for name, v in data.items()}
