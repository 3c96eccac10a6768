"""Attention on this CPU: torch's fused kernel, its separate products, and ours; forward + backward.

python -m benchmarks.attention
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.models.attention import attention

_CASES = {  # batch, heads, queries, keys, head width
    "CLIP, 64 patches": (256, 4, 65, 65, 32),
    "prior, 32 tokens": (256, 6, 36, 36, 32),
    "decoder, 8 x 8 and caption": (256, 4, 64, 100, 32),
}
_REPEATS = 7


def _milliseconds(call: Callable[[], Tensor]) -> float:
    weights = torch.randn_like(call())
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        call().backward(weights)
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def _fused(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(q, k, v)


def main() -> None:
    """Print milliseconds and ratios for every case and precision."""
    print(f"{'':32}{'fused':>10}{'products':>10}{'ours':>10}{'fused/ours':>12}")
    for name, (batch, heads, queries, keys, width) in _CASES.items():
        for dtype in (torch.float32, torch.bfloat16):
            shapes = [(batch, heads, n, width) for n in (queries, keys, keys)]
            q, k, v = (torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes)
            fused = _milliseconds(lambda: _fused(SDPBackend.FLASH_ATTENTION, q, k, v))  # noqa: B023
            products = _milliseconds(lambda: _fused(SDPBackend.MATH, q, k, v))  # noqa: B023
            ours = _milliseconds(lambda: attention(q, k, v))  # noqa: B023
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            print(f"{label:32}{fused:10.1f}{products:10.1f}{ours:10.1f}{fused / ours:12.1f}")


if __name__ == "__main__":
    main()
