"""Commands without their imports: a process that has imported them forks one for each call.

Half of what a short command takes is the import of torch and open_clip. `warm_program` writes a
program that behaves like `python -m MODULE` for its caller: arguments, folder, environment,
standard streams and exit code. A signal reaches the caller's end alone.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Those that start no thread: a thread does not survive a fork.
_IMPORTED = ("open_clip", "trainer.session", "trainer.sampling.cascade", "data_pipeline.pipeline")
_STREAMS = 3
_CLIENT = """#!{python} -SE
import json, os, socket, sys
there = socket.socket(socket.AF_UNIX)
there.connect({address!r})
call = json.dumps([{module!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(there, [len(call).to_bytes(4, "big")], [0, 1, 2])
there.sendall(call)
code = there.recv(1)
sys.exit(code[0] if code else "the command ended without an exit code")
"""


@contextmanager
def warm_program(program: Path, module: str, project: Path) -> Iterator[None]:
    """`program` calls `python -m module` of the packages in `project` while the block runs."""
    address = program.with_suffix(".socket")
    program.write_text(_CLIENT.format(python=sys.executable, address=str(address), module=module))
    program.chmod(0o755)
    line = [sys.executable, __file__, str(address)]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    server = subprocess.Popen(line, env=environment, cwd=project, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        server.kill()
        server.communicate()


def _serve(address: str) -> None:
    del sys.path[0]  # this file's folder, which a command would not have
    for name in _IMPORTED:
        __import__(name)
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(address)
        here.listen()
        print("ready", flush=True)
        while True:
            there, _ = here.accept()
            if os.fork() == 0:
                here.close()
                if os.fork() == 0:
                    _answer(there)
                os._exit(0)
            there.close()
            os.wait()


def _answer(there: socket.socket) -> None:
    """Runs one call in a process of its own and tells its exit code."""
    size, streams, _, _ = socket.recv_fds(there, 4, _STREAMS)
    with there.makefile("rb") as stream:
        module, arguments, folder, environment = json.loads(
            stream.read(int.from_bytes(size, "big"))
        )
    child = os.fork()
    if child == 0:
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        there.close()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    there.sendall(bytes([code % 256]))
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
