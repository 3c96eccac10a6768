"""A plan as text, and sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import asdict

from base.errors import UserError
from trainer.planning.plan import HEADROOM, Plan

_UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str) -> int:
    """80GB, 80GiB or a plain number of bytes.

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]*)\s*", text)
    unit = found and _UNITS.get(found[2].upper(), 1 if not found[2] else None)
    try:
        size = float(found[1]) * unit if found and unit else 0.0
    except ValueError:
        size = 0.0
    if size <= 0:
        raise UserError(f"--memory: got {text!r}, expected a size such as 80GB or 24GiB")
    return int(size)


def describe(plan: Plan) -> list[str]:
    """The lines of a plan."""
    hardware = plan.hardware
    pace = f"{hardware.gpus} GPU(s) at {hardware.mfu:.0%} of the peak"
    micro = f"{plan.micro_batch} samples at once, {plan.micro_batches} time(s) a step"
    lines = [
        f"stage        {plan.stage}, {plan.precision}",
        f"parameters   {plan.parameters:,} trained, {plan.frozen:,} frozen",
        f"each GPU     {micro}",
        f"FLOPs        {plan.flops / 1e9:,.3f} GFLOP a sample, forward and backward",
        f"time         {_time(plan.days)} on {pace}",
        "",
    ]
    names = list(asdict(plan.options[0].memory))
    lines.append(f"{'GB a GPU':9}" + "".join(f"{name:>12}" for name in (*names, "total", "host")))
    for option in plan.options:
        sizes = [*asdict(option.memory).values(), option.memory.total, option.host]
        row = "".join(f"{_gb(size):>12}" for size in sizes)
        note = "fits" if option.fits else "does not fit"
        lines.append(f"{option.engine:9}{row}  {note}{' (the config)' if option.chosen else ''}")
    lines += ["", f"fits: {1 - HEADROOM:.0%} of {_gb(hardware.memory)} GB are enough"]
    return lines


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f}" if size >= 1e8 else f"{size / 1e9:.4f}"


def _time(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else f"{days * 24:,.2f} hours"
