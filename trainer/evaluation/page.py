"""What the reports are made with: pages that need nothing beside them, sheets, versions."""

from __future__ import annotations

import base64
import io
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

from trainer.sampling.sheet import caption_sheet, save_image

COLUMNS = 8

_PACKAGES = ("unclip", "torch", "deepspeed", "ray", "open_clip_torch", "pyarrow", "numpy")


def versions() -> dict[str, str]:
    """Versions of what made the pictures, and the machine."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name(0) if on_gpu else f"CPU ({platform.machine()})"
    return {**found, "device": device, "cpus": str(len(os.sched_getaffinity(0)))}


def write_pictures(pictures: Tensor, captions: Sequence[str], path: Path) -> None:
    """A sheet of uint8 [N, 3, S, S] with the captions below them."""
    arrays = [picture.permute(1, 2, 0).contiguous().numpy() for picture in pictures]
    save_image(caption_sheet(arrays, captions, COLUMNS), path)


def spread(total: int, count: int) -> list[int]:
    """`count` of `total` places, evenly spread: captions are often sorted by kind."""
    return [i * total // count for i in range(count)]


def render(package: str, template: str, **values: Any) -> str:
    """The page that a template of `package` describes; it may extend `page.html.j2` of this one."""
    loaders = [jinja2.PackageLoader(name, ".") for name in (package, __package__)]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number}
    return environment.get_template(template).render(**values)


def data_url(png: bytes) -> str:
    """A picture inside a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def figure_png(figure: Any) -> bytes:
    """A matplotlib figure, which is closed."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return buffer.getvalue()


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
