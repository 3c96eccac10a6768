"""What devices can compute at most, by their makers' data sheets."""

from __future__ import annotations

from trainer.config import Precision

# TFLOP/s of dense products: (bf16 and fp16, fp32 without TF32, which torch does not take by itself)
_PEAKS: dict[str, tuple[float, float]] = {
    "B200": (2250.0, 75.0),
    "H200": (989.0, 67.0),
    "H100": (989.0, 67.0),
    "H800": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "A10G": (70.0, 35.0),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}
ASSUMED = "H100"  # of a plan that names none


def peak_tflops(device: str, precision: Precision) -> float | None:
    """The peak of a device by the name that torch gives it; None where it is not known."""
    for name, (low, full) in _PEAKS.items():
        if name in device:
            return full if precision == "fp32" else low
    return None
