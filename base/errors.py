"""Errors that are a user's to act on: each message is one line and each class has an exit code."""

import errno

_NAMES = (
    "EIO ESTALE ETIMEDOUT EREMOTEIO EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET ENOTCONN "
    "ESHUTDOWN ECONNABORTED ECONNREFUSED ECONNRESET"
)
_PASSING = {getattr(errno, name, None) for name in _NAMES.split()} - {None}  # not all everywhere


class UserError(Exception):
    """The user's mistake, told in one line: what was got, what was expected, where."""

    exit_code = 2


class NothingUsable(UserError):
    """The input was read whole and nothing in it can be used."""

    exit_code = 3


class Diverged(UserError):
    """Training lost its loss, and no return to a checkpoint helped."""

    exit_code = 4


class Unavailable(UserError):
    """What is needed does not answer, or a file system fails, which may pass: try again later."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class Stopped(UserError):
    """Stopped on request; progress is saved, and the same command goes on from there."""

    exit_code = 75


def may_pass(error: BaseException) -> bool:
    """Whether an error came of a network, a file system or a store that fails for the moment."""
    cause: BaseException | None = error
    while cause is not None:
        passing = isinstance(cause, OSError) and cause.errno in _PASSING
        if passing or isinstance(cause, Unavailable):
            return True
        cause = cause.__cause__
    return False


def code_of(error: UserError) -> int:
    """Its exit code: what looks like a mistake but may pass is none."""
    return Unavailable.exit_code if may_pass(error) else error.exit_code


def retold(text: str, passing: bool) -> UserError:
    """An error of another process in this one, where its causes are not at hand."""
    return Unavailable(text) if passing else UserError(text)


def one_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split())
