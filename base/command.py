"""How every command of ours ends: one line for a user's mistake, an exit code, JSON on demand."""

import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import NoReturn

import typer
from pydantic import BaseModel

from base.errors import Stopped, Unavailable, UserError, code_of, may_pass, one_line
from base.stop import STOPPED, interrupted_by_signals

_DEBUG = "--debug"
_KEYBOARD = 130
_INTERRUPTED = "interrupted; run the same command again"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PATH = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EROFS}
_PATH.add(errno.EEXIST)  # a file where a folder should be


def run(app: typer.Typer) -> NoReturn:
    """Runs `app` on the command line and ends the process with the documented exit code.

    `--debug` is understood anywhere on the command line, so that it can be appended to the command
    that failed; it shows the traceback of whatever ends the command. SIGTERM and SIGUSR2 end it
    like Ctrl-C, from its first import on, unless it takes them itself.
    """
    arguments = sys.argv[1:]
    debug = _DEBUG in arguments
    with interrupted_by_signals() as by_system:
        code = _run(app, [argument for argument in arguments if argument != _DEBUG], debug)
    if code == _KEYBOARD and by_system():
        code = _report(Stopped(STOPPED), debug=False)
    elif code == _KEYBOARD:
        print(_INTERRUPTED, file=sys.stderr)
    sys.exit(code)


def _run(app: typer.Typer, arguments: list[str], debug: bool) -> int:
    """Runs `app`; its exit code, that of an interruption not told yet."""
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name=_name(), standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, debug)
    return result if isinstance(result, int) else 0  # 130 after Ctrl-C, in some typers


def emit_json(value: object) -> None:
    """Prints a command's result as one JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def line_and_code(error: BaseException) -> tuple[str, int]:
    """The line and the exit code that stand for `error`."""
    if isinstance(error, UserError):
        return one_line(error), code_of(error)
    for cause in _causes(error):
        if _is_full(cause):
            return f"no space left on device{_place(cause)}; free some and run it again", 2
    if isinstance(error, OSError) and error.errno in _PATH and error.filename is not None:
        return f"{_text(error.filename)}: {error.strerror}", 2
    detail = one_line(error) or "no message"
    if may_pass(error):
        return f"{detail}; run it again later (--debug shows where)", Unavailable.exit_code
    return f"unexpected {type(error).__name__}: {detail} (--debug shows where)", 1


def _report(error: BaseException, debug: bool) -> int:
    """Prints what ended the command, unless it was interrupted; gives the exit code."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return _KEYBOARD
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if hasattr(error, "format_message"):  # a mistake on the command line itself
        return _report_usage(error, error.format_message())
    line, code = line_and_code(error)
    print(f"error: {line}", file=sys.stderr)
    return code


def _report_usage(error: BaseException, message: str) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return 2
    path = context.command_path if context is not None else _name()
    message = " ".join(message.split()).rstrip(".")
    print(f"error: {message}; see {path} --help", file=sys.stderr)
    return 2


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_full(error: BaseException) -> bool:
    """Whether the disk is full; libraries in C++ or Rust keep the words and lose the errno."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return not isinstance(error, UserError) and "No space left on device" in str(error)


def _place(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" ({_text(name)})" if name is not None else ""


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, bytes | str) else str(name)


def _name() -> str:
    """The command's name as it was typed: unclip, or python -m PACKAGE."""
    program = os.path.basename(sys.argv[0])
    if program == "__main__.py":
        spec = sys.modules["__main__"].__spec__
        package = os.path.basename(os.path.dirname(sys.argv[0]))
        return f"python -m {spec.parent if spec else package}"
    return program


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")
