"""How often the verifier is right, and how often fooled: `python -m benchmarks.verifier`.

The tests go through the same tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import cv2
import numpy as np

from benchmarks.crowd_pictures import FINE, SPOILED_CROWD, SPOILED_SIGN
from benchmarks.scene_pictures import SPOILED, TRUE, Maker
from data_pipeline.scenes import scene
from data_pipeline.scenes.draw import SPLITS
from data_pipeline.schema.scenes import KINDS, USUAL_KINDS, Kind
from trainer.evaluation.scenes import judge, read_scene

TABLES: tuple[tuple[str, tuple[Kind, ...], dict[str, Maker]], ...] = (
    ("true", USUAL_KINDS, TRUE),
    ("spoiled", USUAL_KINDS, SPOILED),
    ("crowd", ("crowd",), FINE),
    ("spoiled crowd", ("crowd",), SPOILED_CROWD),
    ("sign", ("sign",), FINE),
    ("spoiled sign", ("sign",), SPOILED_SIGN),
)


def share_right(
    make: Maker, count: int, seed: int, kinds: Sequence[Kind] = USUAL_KINDS
) -> tuple[float, float]:
    """The share of pictures judged all right, and pictures read a second."""
    right = made = 0
    seconds = 0.0
    for index in range(count):
        truth, _ = scene(seed, index, SPLITS[index % len(SPLITS)], kinds)
        image = make(truth, np.random.default_rng((seed, index)))
        if image is None:
            continue
        begin = time.perf_counter()
        reading = read_scene(image)
        seconds += time.perf_counter() - begin
        made += 1
        right += judge(reading, truth).all_right
    return right / made, made / seconds


def main() -> None:
    """Print all tables: what should be right, then what never should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--kinds", default=",".join(KINDS), help="those whose tables are printed")
    options = parser.parse_args()
    for title, kinds, makers in TABLES:
        if not set(kinds) <= set(options.kinds.split(",")):
            continue
        for name, make in makers.items():
            right, rate = share_right(make, options.count, options.seed, kinds)
            print(f"{title:<14} {name:<30} {right:8.2%} all right, {rate:6,.0f} pictures/s")


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
