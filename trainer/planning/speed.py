"""How fast a run computes, and how much memory its process has taken."""

from __future__ import annotations

import resource

import torch

from trainer.config import AnyTrainConfig
from trainer.engine.base import Engine
from trainer.engine.open import resolve_precision
from trainer.planning.outline import flops_per_sample, outline
from trainer.planning.peaks import peak_tflops


class Speed:
    """FLOPs of one sample are counted once, on shapes alone; the rest is division."""

    def __init__(self, config: AnyTrainConfig, engine: Engine) -> None:
        precision = resolve_precision(config.train, engine.device)
        self._device, self._processes = engine.device, engine.world_size
        self._flops = flops_per_sample(config, outline(config, precision))
        self._peak = config.log.peak_tflops
        if self._peak is None and engine.device.type == "cuda":
            self._peak = peak_tflops(torch.cuda.get_device_name(engine.device), precision)

    def numbers(self, samples_per_second: float) -> dict[str, float | None]:
        """For a line of metrics: FLOPs of a sample, TFLOP/s of each process, MFU, peak bytes."""
        tflops = samples_per_second * self._flops / self._processes / 1e12
        return {
            "flops": self._flops,
            "tflops": tflops,
            "mfu": None if self._peak is None else tflops / self._peak,
            "memory": _peak_memory(self._device),
        }


def _peak_memory(device: torch.device) -> int:
    """Bytes that tensors took at most on a GPU; on a CPU, that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
