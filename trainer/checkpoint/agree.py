"""What the ranks of a run do together: each its part, and an error of one is the error of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from base.errors import UserError, may_pass, one_line, retold


class Ranks(Protocol):
    """The processes that write or read a run's checkpoints together; an engine is such."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (plain data), in rank order, on every rank."""
        ...


class Alone:
    """One process that needs nobody."""

    rank = 0
    world_size = 1

    def gather(self, value: Any) -> list[Any]:
        """The only rank's value."""
        return [value]


@dataclass(frozen=True)
class Outcome:
    """What one rank's part gave, or why it gave nothing."""

    result: Any
    error: str | None
    may_pass: bool = False


def attempt(work: Callable[[], Any]) -> Outcome:
    """Do one rank's part; what a user can act on is kept for all ranks to raise."""
    try:
        return Outcome(work(), None)
    except (OSError, UserError) as error:
        return Outcome(None, one_line(error) or type(error).__name__, may_pass(error))


def agreed(ranks: Ranks, outcome: Outcome, failure: str) -> list[Any]:
    """The results of all ranks.

    Raises:
        UserError: a rank failed; `failure` and its error, on all ranks alike.
    """
    outcomes = ranks.gather((outcome.result, outcome.error, outcome.may_pass))
    for rank, (_, error, passing) in enumerate(outcomes):
        if error is not None:
            raise retold(f"{failure}: {error} (rank {rank})", passing)
    return [result for result, _, _ in outcomes]
