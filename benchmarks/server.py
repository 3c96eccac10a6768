"""Pictures on the loopback interface, from memory, in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

_MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class _Answers(asyncio.Protocol):
    """GET /NUMBER.jpg, with connections kept open as the client likes."""

    def __init__(self, bodies: Sequence[bytes]) -> None:
        self._bodies = bodies
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for request in requests:
            name = request.split(b" ", 2)[1].removeprefix(b"/").removesuffix(b".jpg")
            close = b"connection: close" in request.lower()
            if name.isdigit() and int(name) < len(self._bodies):
                body = self._bodies[int(name)]
                head = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n" % len(body)
                tail = b"Connection: close\r\n\r\n" if close else b"\r\n"
                self._transport.writelines((b"HTTP/1.1 200 OK\r\n" + head + tail, body))
            else:
                self._transport.write(_MISSING)
            if close:
                self._transport.close()


@contextmanager
def serving(bodies: Sequence[bytes]) -> Iterator[int]:
    """Serves `bodies` as /0.jpg, /1.jpg, …; yields the port."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(bodies, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _serve(bodies: Sequence[bytes], pipe: Connection) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Answers(bodies), "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def ceiling(port: int, count: int, seconds: float = 2.0) -> float:
    """Pictures a second that the server gives to eight connections that only count bytes."""
    done = [0] * 8
    until = time.perf_counter() + seconds

    def take(thread: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as link:
            buffer = bytearray(1 << 18)
            while time.perf_counter() < until:
                number = (thread * 97 + done[thread]) % count
                link.sendall(b"GET /%d.jpg HTTP/1.1\r\nHost: here\r\n\r\n" % number)
                got = link.recv_into(buffer)
                head = bytes(buffer[:got]).split(b"\r\n\r\n")[0]
                left = len(head) + 4 + int(head.rsplit(b" ", 1)[1]) - got
                while left > 0:
                    left -= link.recv_into(buffer, min(left, len(buffer)))
                done[thread] += 1

    threads = [threading.Thread(target=take, args=(i,)) for i in range(len(done))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / seconds
