"""Google's store as gcp-storage-emulator plays it, over real HTTP on loopback.

The emulator knows no conditions; the one that a lease needs (an object is put only where there is
none, ifGenerationMatch=0) is added here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from functools import partial
from http.server import HTTPServer
from pathlib import Path
from typing import Any

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage


class _There(Exception):
    """The object is there already."""


class _Storage(Storage):
    only_new = False  # of the request under way; they come one after the other

    def create_file(self, bucket: str, name: str, *rest: Any, **more: Any) -> Any:
        if self.only_new and name in self.objects.get(bucket, {}):
            raise _There
        return super().create_file(bucket, name, *rest, **more)


class _Handler(RequestHandler):
    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        self.storage.only_new = "ifGenerationMatch=0" in self.path
        try:
            super().do_POST()
        except _There:
            body = json.dumps({"error": {"code": 412, "message": "conditionNotMet"}}).encode()
            self.send_response(412)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


class _Server(HTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that have read enough go away."""


class GcsServer:
    """Every bucket is made by a test."""

    def __init__(self) -> None:
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        self._storage = _Storage(use_memory_fs=True)
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self._storage))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def bucket(self, name: str) -> str:
        """A new bucket; its address."""
        create_bucket(name, self._storage)
        return f"gs://{name}"

    def put(self, folder: Path, address: str) -> str:
        """Puts a local file or folder to an address."""
        from base.places import place

        for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if path.is_file():
                target = place(address)
                target = target if path == folder else target / str(path.relative_to(folder))
                target.write_bytes(path.read_bytes())
        return address

    def tree(self, address: str) -> dict[str, str]:
        """SHA-256 of every object below an address."""
        bucket, _, key = address.removeprefix("gs://").partition("/")
        prefix = f"{key}/" if key else ""
        names = sorted(self._storage.objects.get(bucket, {}))
        return {
            name.removeprefix(prefix): hashlib.sha256(
                self._storage.get_file(bucket, name)
            ).hexdigest()
            for name in names
            if name.startswith(prefix)
        }
