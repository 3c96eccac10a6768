"""A diffusers UnCLIP pipeline of random weights at the smallest size, and pictures of it.

It runs in any environment that has diffusers and transformers, and imports nothing of ours: in that
of diffusers 0.33.1 it is a program (`python tiny_pipeline.py make|draw …`).
"""

import gzip
import json
import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    pipelines,
)
from diffusers.schedulers import scheduling_unclip
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

try:
    from diffusers.pipelines import deprecated
    from diffusers.pipelines.deprecated import unclip
except ImportError:  # 0.33.1
    from diffusers.pipelines import unclip
else:
    # What model_index.json of the release names; 0.42 has moved it, and does not look there.
    assert deprecated
    pipelines.unclip = unclip

DIM, SIDE, LARGER = 16, 8, 16
STEPS = {"prior": 25, "decoder": 25, "super_res": 7}
DOWN, UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
TEXT = {"hidden_size": DIM, "intermediate_size": 4 * DIM, "num_hidden_layers": 2}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}


def randomised(module: nn.Module) -> nn.Module:
    """Weights that let every input be seen, and norms about 1; what comes out is small, or the last
    bit of a sum would decide over a picture many steps later."""
    for name, value in module.state_dict().items():
        if value.dim() > 1 and "clip_" not in name:
            spread = 0.3 if name.startswith(("conv_out", "proj_to_clip")) else 1.0
            value.normal_(0, spread / value[0].numel() ** 0.5)
        elif "norm" not in name or name.endswith("bias"):
            value.normal_(0, 0.1)
    return module.eval()


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's own, from open_clip's file of merges; filled up with "!" as Karlo's."""
    from open_clip import tokenizer as theirs

    folder.mkdir(parents=True, exist_ok=True)
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = theirs.SimpleTokenizer().encoder.items()
    words = {special.get(name, name): place for name, place in vocabulary}
    merges = gzip.decompress(Path(theirs.default_bpe()).read_bytes()).decode().split("\n")
    merges = merges[1 : 49152 - 256 - 2 + 1]
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return CLIPTokenizer.from_pretrained(folder, pad_token="!", model_max_length=77)


def image_encoder() -> CLIPVisionModelWithProjection:
    """The other half of its CLIP."""
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        **VISION, num_attention_heads=2, image_size=32, patch_size=16, projection_dim=DIM
    )
    return randomised(CLIPVisionModelWithProjection(config))


def pipeline(folder: Path) -> Any:
    """UnCLIPPipeline of random weights; `folder` is for its tokenizer's files."""
    torch.manual_seed(0)
    text = CLIPTextConfig(**TEXT, num_attention_heads=2, projection_dim=DIM)
    sizes: dict[str, Any] = {"block_out_channels": [32, 64], "layers_per_block": 1}
    larger: dict[str, Any] = {
        **sizes,
        "sample_size": LARGER,
        "in_channels": 6,
        "out_channels": 3,
        "down_block_types": [DOWN] * 2,
        "up_block_types": [UP] * 2,
        "add_attention": False,
    }
    prior = randomised(
        PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=DIM
        )
    )
    prior.clip_mean.data.normal_()
    prior.clip_std.data.uniform_(0.5, 2)
    return unclip.UnCLIPPipeline(
        prior=prior,
        decoder=randomised(
            UNet2DConditionModel(
                **sizes,
                sample_size=SIDE,
                in_channels=3,
                out_channels=6,
                down_block_types=[DOWN, "SimpleCrossAttnDownBlock2D"],
                mid_block_type="UNetMidBlock2DSimpleCrossAttn",
                up_block_types=["SimpleCrossAttnUpBlock2D", UP],
                cross_attention_dim=20,
                attention_head_dim=8,
                class_embed_type="identity",
                resnet_time_scale_shift="scale_shift",
            )
        ),
        text_encoder=randomised(CLIPTextModelWithProjection(text)),
        tokenizer=tokenizer(folder),
        text_proj=randomised(
            unclip.text_proj.UnCLIPTextProjModel(
                clip_embeddings_dim=DIM, time_embed_dim=128, cross_attention_dim=20
            )
        ),
        super_res_first=randomised(UNet2DModel(**larger)),
        super_res_last=randomised(UNet2DModel(**larger)),
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(),
    )


def save(folder: Path, with_vision: bool = True) -> Any:
    """A pipeline, and its folder as Karlo's is: what is loaded is named as in the release."""
    made = pipeline(folder / "tokenizer")
    made.save_pretrained(folder)
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index["text_proj"] = ["unclip", "UnCLIPTextProjModel"]
    path.write_text(json.dumps(index))
    if with_vision:
        image_encoder().save_pretrained(folder / "image_encoder")
    return made


def draw(pipe: Any, captions: list[str], noise: list[Tensor]) -> Tensor:
    """Pictures in [0, 1], [B, 3, S, S]. `noise`: of prior, decoder and super-resolution the start,
    then the noise of all steps, in order."""
    starts = dict(zip(("prior", "decoder", "super_res"), noise[:3], strict=True))
    rest: Iterator[Tensor] = iter(noise[3:])
    before = scheduling_unclip.randn_tensor
    scheduling_unclip.randn_tensor = lambda *_, **__: next(rest)
    pipe.set_progress_bar_config(disable=True)
    try:
        made = pipe(
            captions,
            **{f"{name}_latents": start for name, start in starts.items()},
            **{f"{name}_num_inference_steps": count for name, count in STEPS.items()},
            output_type="np",
        ).images
    finally:
        scheduling_unclip.randn_tensor = before
    assert next(rest, None) is None
    return torch.from_numpy(np.ascontiguousarray(made)).permute(0, 3, 1, 2)


def in_double(pipe: Any) -> None:
    """The tables of its schedulers in float64.

    As released they are float32, and 1 - (1 - ᾱ_t / ᾱ_s), which at the first step is near 0, has
    hardly a digit right.
    """
    level = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    betas = [min(1 - after / before, 0.999) for before, after in pairwise(level)]
    for name in STEPS:
        scheduler = getattr(pipe, f"{name}_scheduler")
        scheduler.betas = torch.tensor(betas, dtype=torch.float64)
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
        scheduler.one = torch.tensor(1.0, dtype=torch.float64)


def load(folder: Path) -> Any:
    """A folder's pipeline."""
    return unclip.UnCLIPPipeline.from_pretrained(folder, low_cpu_mem_usage=False)


def main(what: str, folder: str, *files: str) -> None:
    """make FOLDER, or draw FOLDER NOISE PICTURES (safetensors files)."""
    from safetensors.torch import load_file, save_file

    if what == "make":
        save(Path(folder))
        return
    noise = load_file(files[0])
    captions = json.loads(Path(files[0]).with_suffix(".json").read_text())
    tensors = [noise[str(number)] for number in range(len(noise))]
    save_file({"pictures": draw(load(Path(folder)), captions, tensors).contiguous()}, files[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
