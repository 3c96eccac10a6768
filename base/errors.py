"""Errors that are a user's to act on: each message is one line and each class has an exit code."""


class UserError(Exception):
    """The user's mistake, told in one line: what was got, what was expected, where."""

    exit_code = 2


class NothingUsable(UserError):
    """The input was read whole and nothing in it can be used."""

    exit_code = 3


class Diverged(UserError):
    """Training lost its loss, and no return to a checkpoint helped."""

    exit_code = 4


class Stopped(UserError):
    """Stopped on request; progress is saved, and the same command goes on from there."""

    exit_code = 75


def one_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split())
