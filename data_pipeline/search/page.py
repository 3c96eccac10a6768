"""The page of results: one HTML file with the pictures in it, which runs and loads nothing."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import jinja2
import numpy as np
import numpy.typing as npt
import simplejpeg

from base.errors import UserError
from base.files import write_atomic
from data_pipeline.search.find import Hit, Results

_SIDE = 512  # pixels; what has more bytes than these is shown smaller
_LARGE = 256 << 10


def check_place(dataset: Path, path: Path) -> None:
    """Refuses to write a page where none can be, before anything is searched.

    Raises:
        UserError: `path` is a folder, or lies in the DATASET, which holds nothing but its own.
    """
    if path.is_dir():
        raise UserError(f"out: got {path}, which is a folder; expected a file such as results.html")
    if dataset.resolve() in path.resolve().parents:
        raise UserError(f"out: got {path}, expected a place outside the DATASET")


def write_page(results: Results, path: Path) -> None:
    """Writes the page; the pictures are read from the tars, by their offsets.

    Raises:
        UserError: a picture is not where the metadata says.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("data_pipeline.search", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [
        {"hit": hit, "picture": _data_url(_jpeg(hit)), "link": _link(hit.url)}
        for hit in results.hits
    ]
    asked = None
    if results.picture is not None:
        asked = _data_url(_smaller(results.picture))
    page = environment.get_template("page.html.j2").render(
        results=results, shown=shown, asked=asked
    )
    # Names of files need not be text.
    write_atomic(path, page.encode("utf-8", "replace"))


def _jpeg(hit: Hit) -> bytes:
    """The stored picture's bytes; a large one made smaller."""
    try:
        with hit.tar.open("rb") as file:
            length = min(hit.length, os.fstat(file.fileno()).st_size)
            data = os.pread(file.fileno(), length, hit.offset)
        if len(data) != hit.length or not data.startswith(b"\xff\xd8"):
            raise ValueError("no JPEG is at its offset")
        return data if len(data) <= _LARGE else _smaller(simplejpeg.decode_jpeg(data))
    except (ValueError, OSError) as error:
        raise UserError(
            f"{hit.tar}: the picture of {hit.key} cannot be read ({error}); "
            "`unclip data verify` tells more"
        ) from error


def _smaller(pixels: npt.NDArray[np.uint8]) -> bytes:
    height, width = pixels.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    sides = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = cv2.resize(pixels, sides, interpolation=cv2.INTER_AREA)
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(scaled), quality=90)
    return encoded


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _link(url: str | None) -> str | None:
    """The address when it may be a link: of the web, and nothing that a browser would run."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.netloc else None
