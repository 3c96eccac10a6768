"""How addresses are fetched: limits, patience, manners."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from base.config import Config

_Seconds = Annotated[float, Field(gt=0)]
# What changes how long it takes, and nothing of what comes: a run that goes on may change it.
PACE = (
    "concurrency",
    "connect_seconds",
    "silence_seconds",
    "deadline_seconds",
    "attempts",
    "backoff_seconds",
    "per_host",
    "host_delay_seconds",
)
LISTS = ("opt_out_domains", "opt_out_hashes")  # it is their content that counts, not their place


class FetchConfig(Config):
    """Patience and manners towards the hosts that pictures come from."""

    concurrency: int = Field(256, ge=1, le=4096)  # addresses under way, of each task
    connect_seconds: _Seconds = 10.0
    silence_seconds: _Seconds = 10.0  # without a byte
    deadline_seconds: _Seconds = 60.0  # of one picture, redirects and attempts included
    attempts: int = Field(3, ge=1)  # where the fault may pass: time-outs, DNS, 429, 5xx
    backoff_seconds: Annotated[float, Field(ge=0)] = 0.5  # before the second; then doubled
    redirects: int = Field(5, ge=0)
    max_bytes: int = Field(32 << 20, ge=1)  # of a picture; never more than `max_bytes` of all
    user_agent: str = Field(
        "unclip/0.1 (collects image-text pairs for research; see robots.txt)", min_length=1
    )
    robots: bool = True  # robots.txt of every host is read and kept to
    opt_out_tags: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    opt_out_domains: Path | None = None  # one a line; sub-domains are meant as well
    opt_out_hashes: Path | None = None  # sha256 or md5 of files, one a line
    per_host: int = Field(8, ge=1)  # connections to one host, of each task
    host_delay_seconds: Annotated[float, Field(ge=0)] = 0.0  # between requests to one host
    allow_private: bool = False  # addresses of one's own network; never on a server
