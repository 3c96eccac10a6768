"""A loss that blows up: back to the last good checkpoint, without the data that came after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from base.errors import Diverged
from trainer.engine.base import StepStats
from trainer.guards.report import FILE, StepRecord, write_report
from trainer.guards.spikes import robust_z
from trainer.session import Session

_REPORTED = 50  # steps


class Divergence:
    """Looks at every step of a run. All ranks see the same numbers, and so decide alike."""

    def __init__(self, session: Session, warn: Callable[[str], None]) -> None:
        self._session, self._warn = session, warn
        self._guards = session.config.guards
        self._steps: deque[StepRecord] = deque(maxlen=_REPORTED)

    def look(self, stats: StepStats) -> None:
        """Look at a step that was just counted; when it is in trouble, roll the run back.

        Raises:
            Diverged: there is no good checkpoint, going back did not help, or it was done as often
                as the config allows; report.json tells what happened.
        """
        samples = self._session.state.samples
        self._steps.append(StepRecord(samples, stats.sums[0], stats.grad_norm, stats.applied))
        if self._session.state.skipped_in_row >= self._guards.bad_steps:
            count = self._guards.bad_steps
            self._recover(f"loss or gradient was not finite for {count} steps in a row")
        elif stats.applied and self._guards.spike_z is not None:
            self._look_for_spike(stats.sums[0], self._guards.spike_z)

    def _look_for_spike(self, loss: float, limit: float) -> None:
        state, window = self._session.state, self._guards.spike_window
        z = robust_z(state.recent, loss) if len(state.recent) == window else 0.0
        if z > limit:
            self._recover(f"the loss {loss:.4g} lies {z:.0f} deviations above the last {window}")
        else:
            state.recent = [*state.recent, loss][-window:]

    def _recover(self, reason: str) -> None:
        """Go back, or end the run."""
        session, state = self._session, self._session.state
        session.finish_save()
        passed = state.samples
        if len(state.rollbacks) < self._guards.rollbacks and not state.is_stuck():
            found = session.roll_back(self._warn)
            if found is not None:
                if session.engine.rank == 0:
                    self._warn(
                        f"{reason}, up to {passed} samples: back to the weights of {found}, the "
                        "samples in between are left out"
                    )
                return
        write_report(session, reason, list(self._steps))
        raise Diverged(
            f"{session.config.out}: {reason}, up to {passed} samples; lower optim.lr or look at "
            f"the data ({FILE} there tells more)"
        )
