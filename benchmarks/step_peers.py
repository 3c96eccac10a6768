"""A training step of our networks and of diffusers' with the same weights, on the same inputs.

python -m benchmarks.step_peers [--full] [--rounds N] [--only NAME …] [--precisions …]

Forward and backward pass, clipping and fused AdamW; no average of weights on either side. Ours in
the one-process engine, in bf16 with weights of 16 bits and masters of 32; theirs in a plain loop,
in bf16 under autocast. The sides take turns, timed by the processor's time; a ratio is the median
of those of single rounds. `--full` has the sizes for a faster machine.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.peers.plain import CLIP, DECAY, RATE, error, plain_step, timed
from benchmarks.twins import (
    DECODER,
    PRIOR,
    UPSAMPLER,
    Twins,
    caption_inputs,
    decoders,
    priors,
    upsamplers,
    widened,
)
from trainer.config import OptimConfig, Precision
from trainer.engine.base import Setup
from trainer.engine.local import LocalEngine

_SIDE, _FULL_CHANNELS = 64, 96
_OPTIM = OptimConfig(lr=RATE, weight_decay=DECAY, clip_grad=CLIP)
Step = Callable[[], tuple[float, float]]
"""A training step: the loss before it, and the seconds that it took."""


class Case(NamedTuple):
    """Two networks and a batch for both."""

    twins: Twins
    inputs: Mapping[str, Tensor]


def main() -> None:
    """Print samples a second of each network and side, and ours against theirs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=tuple(_CASES), default=tuple(_CASES))
    parser.add_argument("--precisions", nargs="+", default=("fp32", "bf16"))
    options = parser.parse_args()
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    threads = torch.get_num_threads()
    print(f"{threads} threads, bf16 of the processor's own: {native}, {options.rounds} rounds")
    print(f"{'samples/s':36}{'ours':>9}{'diffusers':>11}{'ratio':>8}")
    for name in options.only:
        for precision in options.precisions:
            case = _CASES[name](options.full)
            figures = _figures(case, precision, options.rounds)
            print(f"{name + ', ' + precision:36}{figures}", flush=True)


def _figures(case: Case, precision: Precision, rounds: int) -> str:
    steps = {"ours": _ours(case, precision), "diffusers": _diffusers(case, precision)}
    seconds, batch = _measure(steps, rounds), len(case.inputs["t"])
    ours, theirs = (batch / statistics.median(seconds[name]) for name in steps)
    return f"{ours:9.2f}{theirs:11.2f}{_ratio(seconds['diffusers'], seconds['ours']):8.2f}"


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _measure(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step but the first.

    Raises:
        SystemExit: the two of the same weights do not begin with the same loss.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    losses: dict[str, float] = {}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            loss, taken = step()
            if round_:  # the first warms up
                seconds[name].append(taken)
            losses.setdefault(name, loss)
    if abs(losses["ours"] / losses["diffusers"] - 1) > 0.01:  # bf16 has no more digits
        raise SystemExit(f"the same weights begin with different losses: {losses}")
    return seconds


def _ours(case: Case, precision: Precision) -> Step:
    setup = Setup(precision, 1, lambda world_size: 1)
    engine = LocalEngine(case.twins.ours, _OPTIM, setup, torch.device("cpu"))

    def step() -> float:
        loss = engine.forward(lambda: error(case.twins.call_ours(engine.module, case.inputs)))
        engine.backward(loss)
        return engine.step(RATE, loss.detach().reshape(1)).sums[0]

    return timed(step)


def _diffusers(case: Case, precision: Precision) -> Step:
    module = case.twins.theirs
    return timed(
        plain_step(module, lambda: case.twins.call_theirs(module, case.inputs), precision == "bf16")
    )


def _prior(full: bool, shortest: int = 77, longest: int = 77) -> Case:
    batch = 32 if full else 8
    torch.manual_seed(0)
    inputs = caption_inputs(batch, torch.linspace(shortest, longest, batch).long())
    return Case(priors(PRIOR), {"x_t": torch.randn(batch, 512), **inputs})


def _decoder(full: bool) -> Case:
    config, batch = DECODER, 2
    if full:
        config, batch = replace(DECODER, unet=widened(DECODER.unet, _FULL_CHANNELS)), 4
    twins = decoders(config, _SIDE)
    inputs = caption_inputs(batch, torch.full((batch,), 77))
    inputs |= {"image_embedding": torch.randn(batch, 512), "keep_image": torch.ones(batch) > 0}
    inputs["x_t"] = torch.randn(batch, 3, _SIDE, _SIDE)
    return Case(twins, inputs)


def _upsampler(full: bool) -> Case:
    config, batch = UPSAMPLER, 2
    if full:
        config, batch = replace(UPSAMPLER, unet=widened(UPSAMPLER.unet, _FULL_CHANNELS)), 4
    inputs = {name: torch.randn(batch, 3, _SIDE, _SIDE) for name in ("x_t", "enlarged")}
    inputs["t"] = torch.randint(1000, (batch,))
    return Case(upsamplers(config, _SIDE), inputs)


_CASES: dict[str, Callable[[bool], Case]] = {
    "prior": _prior,
    "prior, captions of 8 to 24 tokens": lambda full: _prior(full, 8, 24),
    "decoder": _decoder,
    "upsampler": _upsampler,
}


if __name__ == "__main__":
    main()
