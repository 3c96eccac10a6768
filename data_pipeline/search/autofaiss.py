"""autofaiss, run in the environment that `make retrieval` builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from base.errors import UserError
from base.stop import StopFlag

ENVIRONMENT = "UNCLIP_RETRIEVAL"
_NAME = ".venv-retrieval"
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 10.0
_UNITS = "BKMGT"


def find_autofaiss(environment: Path | None) -> Path:
    """The program; without an environment given, that beside the one this process runs in.

    Raises:
        UserError: it is not there.
    """
    place = environment or Path(sys.prefix).parent / _NAME
    program = place.absolute() / "bin" / "autofaiss"
    if not program.is_file():
        raise UserError(
            f"{place}: has no autofaiss; run `make retrieval`, or name the environment that has it "
            f"(--environment, or {ENVIRONMENT})"
        )
    return program


def memory_bytes(text: str, field: str) -> float:
    """Bytes of a size such as 4G or 500M.

    Raises:
        UserError: `text` is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([BKMGT])B?", text.upper())
    if found is None or float(found[1]) == 0:
        raise UserError(f"{field}: got {text!r}, expected a size such as 4G or 500M")
    return float(found[1]) * 1024.0 ** _UNITS.index(found[2])


def make_index(
    program: Path,
    embeddings: Path,
    index: Path,
    infos: Path,
    memory: str,
    index_memory: str,
    stop: StopFlag,
) -> None:
    """Writes an index of all rows in the npy files of `embeddings`, in the order of their names.

    Inner products are compared. `infos` receives autofaiss's own json; its log lies beside `index`.

    Raises:
        UserError: autofaiss makes none; with its last words.
        Stopped, KeyboardInterrupt: a stop was asked for.
    """
    log = index.with_suffix(".log")
    command = [
        str(program),
        "build_index",
        f"--embeddings={embeddings.absolute()}",
        f"--index_path={index.absolute()}",
        f"--index_infos_path={infos.absolute()}",
        f"--max_index_memory_usage={index_memory}",
        f"--current_memory_available={memory}",
        f"--nb_cores={len(os.sched_getaffinity(0))}",
    ]
    code = _run(command, log, stop)
    if code != 0 or not index.is_file():  # for want of memory it ends with 0 and without an index
        raise UserError(f"autofaiss: made no index of {embeddings}: {_last_words(log)}")


def _run(command: Sequence[str], log: Path, stop: StopFlag) -> int:
    """The exit code. The other environment gets none of this one's paths."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    surroundings = {name: value for name, value in os.environ.items() if name not in ours}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=surroundings,
            start_new_session=True,  # Ctrl-C comes to it from here, after the flag is looked at
        )
        try:
            while True:
                try:
                    return process.wait(_LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    stop.raise_if_requested()
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(log: Path) -> str:
    """The last line that tells an error, or the last one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\[ERROR\]|^\w*(Error|Exception)\b", line)]
    return re.sub(r"^.*\[ERROR\]: ", "", (errors or lines or ["it says nothing"])[-1])[:300]
