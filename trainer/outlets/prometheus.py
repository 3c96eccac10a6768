"""The newest numbers of a run at http://HOST:PORT/metrics, in Prometheus's text format."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from torch import Tensor

from base.errors import UserError

_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Prometheus:
    """A small server in a thread; every number is a gauge `unclip_NAME{run="…"}`."""

    def __init__(self, run: str, port: int) -> None:
        """Raises UserError when the port cannot be had."""
        self._run = run.replace("\\", "\\\\").replace('"', '\\"')
        self._text = b""
        try:
            self._server = ThreadingHTTPServer(("", port), self._handler())
        except OSError as error:
            raise UserError(f"log.prometheus_port: got {port}: {error.strerror}") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="prometheus", daemon=True
        )
        self._thread.start()

    def write(self, samples: int, values: Mapping[str, float]) -> None:
        lines = []
        for name, value in {"samples": samples, **values}.items():
            lines.append(f"# TYPE unclip_{name} gauge")
            lines.append(f'unclip_{name}{{run="{self._run}"}} {float(value)!r}')
        self._text = "".join(f"{line}\n" for line in lines).encode()

    def show(self, picture: Tensor, samples: int) -> None:
        """Prometheus has no pictures."""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outlet = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404)
                    return
                text = outlet._text
                self.send_response(200)
                self.send_header("Content-Type", _TYPE)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Requests are no news."""

        return Handler
