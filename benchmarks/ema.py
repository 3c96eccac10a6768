"""What averages of the weights cost: their update as a share of the step, and their bytes.

`python -m benchmarks.ema [--layers L] [--batch B] [--tokens T] [--repeats R]`. A transformer of
width 512 on the local engine, float32; after each step the averages are updated, one profile, then
three, then torch's own AveragedModel with its foreach function on the same weights. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer.config import EmaConfig, OptimConfig
from trainer.ema.average import Ema
from trainer.engine.base import Setup
from trainer.engine.local import LocalEngine

_WIDTH, _HEADS, _DECAY = 512, 8, 0.9999
_PROFILES = {"one profile": (), "three profiles": (0.05, 0.1)}


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6, help="3.2 million parameters each")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, options.layers, enable_nested_tensor=False)
    peer = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_DECAY))
    engine = LocalEngine(
        model, OptimConfig(), Setup("fp32", 0, lambda world: 1), torch.device("cpu")
    )
    averages = {
        name: Ema(engine.flats(), EmaConfig(decay=_DECAY, powers=powers))
        for name, powers in _PROFILES.items()
    }
    x = torch.randn(options.batch, options.tokens, _WIDTH)

    def step() -> None:
        engine.backward(model(x).square().mean())
        engine.step(1e-4, torch.zeros(1))

    times: dict[str, list[float]] = {"step": [], "AveragedModel": [], **{n: [] for n in averages}}
    for repeat in range(options.repeats + 1):
        taken = {"step": seconds(step)}
        for name, ema in averages.items():
            taken[name] = seconds(lambda: ema.update(repeat))  # noqa: B023
        taken["AveragedModel"] = seconds(lambda: peer.update_parameters(model))
        if repeat:  # the first one also allocates
            for name, value in taken.items():
                times[name].append(value)
    _show(times, averages, sum(p.numel() for p in model.parameters()))


def _show(times: dict[str, list[float]], averages: dict[str, Ema], parameters: int) -> None:
    median = {name: statistics.median(values) for name, values in times.items()}
    held = {
        name: sum(t.nbytes for kind in ema.kinds for t in ema.shadows(kind)) / parameters
        for name, ema in averages.items()
    }
    held["AveragedModel"] = 4.0  # a copy of the module
    print(f"{parameters / 1e6:.1f} million parameters, step {1000 * median['step']:.0f} ms")
    print(f"{'':16}{'ms':>8}{'of the step':>14}{'bytes/parameter':>18}")
    for name, size in held.items():
        share = median[name] / median["step"]
        print(f"{name:16}{1000 * median[name]:>8.1f}{share:>14.1%}{size:>18.1f}")


if __name__ == "__main__":
    main()
