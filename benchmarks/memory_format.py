"""A U-Net's training step with pictures laid out channels first, last, and weights turned as well.

python -m benchmarks.memory_format
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.models.unet import UNet, UNetConfig

_NET = UNetConfig(
    channels=32, multipliers=(1, 2, 3), blocks=1, attention_levels=(2,), head_width=32
)
_BATCH, _SIDE, _ROUNDS = 2, 32, 5


def main() -> None:
    """Print samples a second of each layout, and its ratio to channels first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device.type}, {_BATCH} pictures of {_SIDE} x {_SIDE}, medians of {_ROUNDS} rounds")
    for dtype in (torch.float32, torch.bfloat16):
        nets = {
            "channels first": _net(device, dtype),
            "pictures last (train.channels_last)": _net(device, dtype, pictures=True),
            "pictures and weights last": _net(device, dtype, weights=True),
        }
        steps = {name: _step(net, device, dtype) for name, net in nets.items()}
        rates = _rates(steps, device)
        first = rates["channels first"]
        for name, rate in rates.items():
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            print(f"{label:48}{rate:9.2f} samples/s{rate / first:8.2f} x")


def _net(
    device: torch.device, dtype: torch.dtype, pictures: bool = False, weights: bool = False
) -> UNet:
    torch.manual_seed(0)
    net = UNet(_NET).to(device, dtype)
    net.channels_last = pictures
    return net.to(memory_format=torch.channels_last) if weights else net


def _step(net: UNet, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    x: Tensor = torch.randn(_BATCH, 3, _SIDE, _SIDE, device=device, dtype=dtype)
    t = torch.arange(_BATCH, device=device)

    def step() -> None:
        net(x, t).float().square().mean().backward()

    return step


def _rates(steps: dict[str, Callable[[], None]], device: torch.device) -> dict[str, float]:
    """Samples a second; the layouts take turns, so that what else the machine does hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(_ROUNDS + 1):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - begun)
    return {name: _BATCH / statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
