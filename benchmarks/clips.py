"""CLIPs of chosen sizes with seeded weights, as folders that open_clip of any age can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

_CONTEXT = 77


def _config(size: int, patch: int, width: int, layers: int, text: int, deep: int) -> dict[str, Any]:
    heads = max(1, width // 64)
    return {
        "embed_dim": min(width, 256),
        "vision_cfg": {
            "image_size": size,
            "layers": layers,
            "width": width,
            "head_width": width // heads,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": _CONTEXT,
            "vocab_size": 49408,
            "width": text,
            "heads": max(1, text // 64),
            "layers": deep,
        },
    }


# nano: reading and resizing are the limit; small: the model is.
CLIPS = {
    "nano": _config(224, 32, 64, 2, 64, 1),
    "small": _config(224, 32, 384, 6, 256, 3),
}


def write_clip(name: str, folder: Path) -> Path:
    """A folder with config, weights, and NAME.json, which registers the model in open_clip."""
    folder.mkdir(parents=True)
    config = CLIPS[name]
    torch.manual_seed(0)
    model = open_clip.CLIP(**json.loads(json.dumps(config)))
    weights = folder / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(weights))
    whole = {"model_cfg": config, "preprocess_cfg": {"size": config["vision_cfg"]["image_size"]}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    (folder / f"bench-{name}.json").write_text(json.dumps(config))
    return folder


def rate_alone(folder: Path, batch: int = 256, batches: int = 3) -> float:
    """Pairs a second of the model alone, with all threads that torch takes here."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    size = model.visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    pictures = torch.randn(batch, 3, height, width)
    tokens = torch.randint(1, 49000, (batch, _CONTEXT))
    import time

    with torch.inference_mode():
        model.encode_image(pictures), model.encode_text(tokens)
        begun = time.perf_counter()
        for _ in range(batches):
            model.encode_image(pictures), model.encode_text(tokens)
    return batch * batches / (time.perf_counter() - begun)
