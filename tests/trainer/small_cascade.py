"""A cascade of networks with random weights: 8 × 8, then 32 × 32; files that stand for one."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from trainer.checkpoint.folders import point_latest
from trainer.checkpoint.manifest import (
    FOLDER,
    MANIFEST,
    TRAINER,
    Manifest,
    folder_name,
    rank_file,
    sealed,
)
from trainer.checkpoint.tensors import FileRecord
from trainer.diffusion.process import Diffusion, DiffusionConfig
from trainer.models.clip import (
    Clip,
    ClipConfig,
    ImageEncoder,
    TextConfig,
    TextEncoder,
    VisionConfig,
)
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.models.unet import UNetConfig
from trainer.models.upsampler import Upsampler, UpsamplerConfig
from trainer.objectives.decoder import DecoderObjectiveConfig
from trainer.objectives.prior import PriorObjectiveConfig
from trainer.objectives.upsampler import UpsamplerObjectiveConfig
from trainer.sampling.analytic import Scores
from trainer.sampling.cascade import Cascade
from trainer.sampling.config import CascadeConfig, DecoderPart, PriorPart, UpsamplerPart
from trainer.sampling.parts import Part

CPU = torch.device("cpu")
Sampler = Literal["ddim", "ancestral", "dpm++", "heun", "analytic"]
CAPTIONS = ["a red circle", "two words", "a blue square under snow", "", "the last one"]
CLIP = ClipConfig(
    16, VisionConfig(32, 32, 1, head_width=16), TextConfig(32, 1, 2, context_length=12)
)
PRIOR = PriorConfig(16, 32, 12, layers=1, heads=2, head_width=16)
UNET = UNetConfig(
    channels=16, multipliers=(1, 2), blocks=1, attention_levels=(1,), head_width=16,
    context_width=24,
)  # fmt: skip
CLEAN = DiffusionConfig(predicts="x0")  # random networks then leave pixels between black and white
SCORES = Scores("0", "ema", 8, {0: 1.0, 500: 1.0, 999: 1.0})
UP = UNetConfig(in_channels=6, channels=16, multipliers=(1, 2), blocks=1, scale_shift=False)


def write_cascade(folder: Path, decoder: str = "", upsamplers: Sequence[str] = ()) -> Path:
    """cascade.yaml and RUNs that have begun; `decoder` holds settings of its own, such as
    "steps: 3". Gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    larger = ", ".join(f"{{run: {name}}}" for name in upsamplers)
    text = f"clip: clip\nprior: {{run: prior}}\ndecoder: {{run: decoder, {decoder}}}\n"
    (folder / "cascade.yaml").write_text(f"{text}upsamplers: [{larger}]\n")
    for name in ("prior", "decoder", *upsamplers):
        if not (folder / name).is_dir():
            train(folder / name, 64)
    return folder


def train(run: Path, samples: int) -> None:
    """A RUN's next checkpoint, as far as its record goes."""
    folder = run / FOLDER / folder_name(samples)
    folder.mkdir(parents=True)
    files = {name: FileRecord(bytes=1, sha256="0" * 64) for name in (TRAINER, rank_file(0))}
    record = Manifest(samples, 1, 1, ("master",), {}, {}, files, {}).to_json()
    (folder / MANIFEST).write_text(json.dumps(sealed(record)))
    point_latest(run, folder)


def part(network: nn.Module, settings: Any, config: Any, objective: Any, stage: str) -> Part:
    """A network whose every weight is random: those that begin as zero would hide its inputs."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator)
    network = network.eval().requires_grad_(False)
    told: Any = SimpleNamespace(stage=stage, model=config, objective=objective)
    return Part(settings, told, network, Diffusion(objective.diffusion), SCORES)


def cascade(sampler: Sampler = "ddim") -> Cascade:
    """Every weight is random, and follows from nothing but this call."""
    torch.manual_seed(0)
    clip = Clip(CLIP).eval().requires_grad_(False).clip
    text = TextEncoder(clip, SimpleTokenizer(context_length=12))
    prior = PriorPart(run="prior", steps=3, sampler=sampler, guidance=2.0)
    decoder = DecoderPart(run="decoder", steps=3, sampler=sampler)
    larger = UpsamplerPart(run="up", steps=2, sampler=sampler)
    decoder_config = DecoderConfig(UNET, embedding_dim=16, text_width=32)
    up_objective = UpsamplerObjectiveConfig(image_size=32, crop=8, factor=4, diffusion=CLEAN)
    return Cascade(
        CascadeConfig(clip="clip", prior=prior, decoder=decoder, upsamplers=(larger,)),
        CPU,
        text,
        ImageEncoder(clip),
        part(DiffusionPrior(PRIOR), prior, PRIOR, PriorObjectiveConfig(diffusion=CLEAN), "prior"),
        part(
            Decoder(decoder_config),
            decoder,
            decoder_config,
            DecoderObjectiveConfig(image_size=8, diffusion=CLEAN),
            "decoder",
        ),
        (
            part(
                Upsampler(UpsamplerConfig(UP)),
                larger,
                UpsamplerConfig(UP),
                up_objective,
                "upsampler",
            ),
        ),
    )
