"""S3 as moto plays it, over real HTTP on loopback; it answers with errors where a test says so."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

_CODES = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}


@dataclass(frozen=True)
class Request:
    """What somebody asked for; `path` is /bucket/key."""

    method: str
    path: str
    first: int  # byte of the range, 0 when none was asked for
    size: int | None  # of the range


class StoreServer:
    """Every bucket is made by a test; `fault` gives the status to fail a request with."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.seen: list[Request] = []
        self.fault: Callable[[Request], int | None] = lambda request: None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        self.client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", ""))
        first, size = (int(match[1]), int(match[2]) - int(match[1]) + 1) if match else (0, None)
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], first, size)
        self.seen.append(request)
        status = self.fault(request)
        if status is None:
            return self._app(environ, start)
        text = f"<Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>"
        body = b"" if request.method == "HEAD" else text.encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(f"{status} Injected", headers)
        return [body]

    def bucket(self, name: str) -> str:
        """A new bucket; its address."""
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def put(self, folder: Path, address: str) -> str:
        """Puts a local file or folder to an address."""
        bucket, _, key = address.removeprefix("s3://").partition("/")
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if path.is_file():
                inside = "" if path == folder else f"/{path.relative_to(folder).as_posix()}"
                self.client.put_object(Bucket=bucket, Key=key + inside, Body=path.read_bytes())
        return address

    def tree(self, address: str) -> dict[str, str]:
        """SHA-256 of every object below an address."""
        bucket, _, key = address.removeprefix("s3://").partition("/")
        pages = self.client.get_paginator("list_objects_v2")
        found = {}
        for page in pages.paginate(Bucket=bucket, Prefix=f"{key}/" if key else ""):
            for item in page.get("Contents", []):
                body = self.client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                found[item["Key"][len(key) + 1 if key else 0 :]] = hashlib.sha256(body).hexdigest()
        return found
