"""Where a run stands: everything beside tensors that its continuation depends on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from base.errors import UserError
from trainer.checkpoint.records import array, integer, mapping, number

_KINDS = {"int": integer, "float": number}
_LATER = {"epoch"}  # fields that the first checkpoints of RUN version 1 do not have


@dataclass
class Window:
    """Sums since the last line of metrics; they cross an interruption with the rest."""

    steps: int = 0  # applied ones
    samples: int = 0
    loss: float = 0.0  # sum over the window's applied samples
    grad_norm: float = 0.0  # sum over applied steps
    seconds: float = 0.0
    waited: float = 0.0  # seconds spent waiting for the loader

    def add(self, samples: int, loss: float, grad_norm: float) -> None:
        """Count an applied step; `loss` is the mean over its samples."""
        self.steps += 1
        self.samples += samples
        self.loss += loss * samples
        self.grad_norm += grad_norm

    def mean_loss(self) -> float | None:
        """The mean over the window's applied samples; None when there are none."""
        return self.loss / self.samples if self.samples else None


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
    window: Window = field(default_factory=Window)

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
        pairs = [array(pair) for pair in array(data["skipped"])]
        known["skipped"] = [(integer(start), integer(end)) for start, end in pairs]
        return TrainState(**known)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: not a record of a run's progress ({error})") from error


def _checked(kind: type[TrainState] | type[Window], data: dict[str, Any]) -> dict[str, Any]:
    """The values of `data`, counts and numbers looked at; their kinds stand beside the fields."""
    kinds = {entry.name: _KINDS.get(str(entry.type)) for entry in fields(kind)}
    return {name: check(v) if (check := kinds.get(name)) else v for name, v in data.items()}
