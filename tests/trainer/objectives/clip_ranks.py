"""One rank of two of a CLIP step: clip_ranks.py FOLDER TOTAL OPPOSED RANK.

FOLDER/sums.safetensors gets the loss and the gradients, summed over the ranks.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from test_objectives import OPPOSED, clip_step


def main(folder: Path, total: int, opposed: bool, rank: int) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, timedelta(seconds=240), rank=rank, world_size=2)
    try:
        first, last = total * rank // 2, total * (rank + 1) // 2
        half = (last - first) // 2
        sizes = [half, last - first - half]
        hard = OPPOSED if opposed else None
        loss, grads = clip_step(sizes, opposed=hard, first=first, total=total)
        sums = {"loss": torch.tensor(loss), **grads}
        for name in sorted(sums):
            dist.all_reduce(sums[name])
        if rank == 0:
            save_file(sums, folder / "sums.safetensors")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1", int(sys.argv[4]))
