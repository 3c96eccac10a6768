"""What goes wrong with object stores and web servers, told in one line each."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

from base.errors import Unavailable, UserError, one_line

_LIBRARIES = {"aiobotocore", "aiohttp", "boto3", "botocore", "fsspec", "gcsfs", "google", "s3fs"}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "DefaultCredentialsError",
}
_SILENT = ("Connect", "Timeout", "HTTPClientError", "ClientPayload", "Disconnected", "Incomplete")
_PASSING = {"SlowDown", "RequestTimeout", "ConditionalRequestConflict", "OperationAborted"}


class StoreError(UserError):
    """A store does not do what it was asked for."""


class StoreSilent(StoreError, Unavailable):
    """It does not answer, or with an error that may pass."""


class StoreRefused(StoreError):
    """This object or bucket is not to be had: access denied, or no such bucket."""


@contextmanager
def told(address: str) -> Iterator[None]:
    """Errors of the libraries that talk to `address` as one line that names it.

    Raises:
        FileNotFoundError, FileExistsError: as they are, with the address as file name.
        StoreError: anything else that a store, a server or the network did.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if not _is_foreign(error):
            raise
        raise _told(shown(address), error) from error


def shown(address: str) -> str:
    """An address without what is secret in it: a web address's password and query."""
    if not address.startswith(("http://", "https://")):
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _is_foreign(error: BaseException) -> bool:
    if isinstance(error, OSError | asyncio.TimeoutError):
        return True
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def _told(where: str, error: BaseException) -> Exception:
    source = _source(error)
    code, status, text = _answer(source)
    names = {kind.__name__ for e in (error, source) for kind in type(e).__mro__}
    if "FileExpired" in names:
        return StoreError(f"{where}: changed while it was read")
    if code == "NoSuchBucket":
        return StoreRefused(f"{where}: no such bucket")
    if isinstance(error, FileExistsError) or status == 412:
        return FileExistsError(errno.EEXIST, "is there already, or has changed", where)
    if status == 416:
        return EOFError(f"{where}: ends before the part that was asked for")
    if isinstance(source, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "no such file or folder", where)
    if names & _NO_CREDENTIALS:
        return StoreError(f"{where}: no credentials ({text})")
    if code in _PASSING or status == 429 or status >= 500:
        return StoreSilent(f"{where}: the store answers with errors ({text}); run it again later")
    if isinstance(source, PermissionError) or status in (401, 403):
        return StoreRefused(f"{where}: access denied ({text})")
    if any(word in name for name in names for word in _SILENT):
        return StoreSilent(f"{where}: the store does not answer ({text}); run it again later")
    return StoreError(f"{where}: {text}")


def _source(error: BaseException) -> BaseException:
    """What the store itself said, beneath what fsspec made of it."""
    while error.__cause__ is not None and _is_foreign(error.__cause__):
        error = error.__cause__
    return error


def _answer(error: BaseException) -> tuple[str, int, str]:
    """The store's error code, the HTTP status (0: there was none), and a few words."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's ClientError
        code = str(response.get("Error", {}).get("Code", ""))
        http = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        operation = getattr(error, "operation_name", "")
        if operation == "HeadBucket" and http == 404:
            code = "NoSuchBucket"
        return code, http, f"{operation}: {code}"
    words = one_line(error)[:200] or type(error).__name__
    for name in ("status", "code"):  # aiohttp; gcsfs
        status = getattr(error, name, None)
        if isinstance(status, int):
            return "", status, f"HTTP status {status}"
    return "", 0, words
