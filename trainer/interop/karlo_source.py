"""A folder of Karlo's original files, under the names that they are published by.

Sizes, diffusion and sides are those that Karlo publishes beside them (configs/karlo).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from base.errors import UserError
from trainer.diffusion.process import DiffusionConfig
from trainer.models.decoder import DecoderConfig
from trainer.models.prior import PriorConfig
from trainer.models.unet import UNetConfig
from trainer.models.upsampler import UpsamplerConfig
from trainer.objectives.decoder import DecoderObjectiveConfig
from trainer.objectives.prior import PriorObjectiveConfig

from .diffusers_source import upsampler_objective
from .files import read_pickle, read_tensors
from .karlo import decoder_weights, prior_weights, upsampler_weights
from .schedulers import Schedule
from .source import PRIOR_LIMIT, Network, Source, decoder_part, prior_part, upsampler_part

# %3D: as a browser or wget leaves the sign = of their addresses.
NAMES = {
    "prior": "prior-ckpt-step*.ckpt",
    "decoder": "decoder-ckpt-step*.ckpt",
    "up": "improved-sr-ckpt-step*.ckpt",
    "stats": "ViT-L-14_stats.th",
}
_ENTRY = "state_dict"
_DIM, _SIDE, _LARGER = 768, 64, 256
_UNET: dict[str, Any] = {"channels": 320, "multipliers": (1, 2, 3, 4), "blocks": 3}
PRIOR = PriorConfig(embedding_dim=_DIM, text_width=_DIM)
DECODER = DecoderConfig(
    UNetConfig(
        **_UNET,
        out_channels=6,
        attention_levels=(1, 2, 3),
        head_width=64,
        context_width=1536,
        dropout=0.1,
        norm_groups=32,
    ),
    embedding_dim=_DIM,
    text_width=_DIM,
    text_in_time=True,
)
UPSAMPLER = UpsamplerConfig(
    UNetConfig(**_UNET, in_channels=6, out_channels=3, scale_shift=False, norm_groups=32)
)


def holds_karlo(folder: Path) -> bool:
    """Whether some of Karlo's files are there."""
    return any(any(folder.glob(pattern)) for pattern in NAMES.values())


def read_karlo(
    folder: Path,
    prior: PriorConfig = PRIOR,
    decoder: DecoderConfig = DECODER,
    upsampler: UpsamplerConfig = UPSAMPLER,
) -> Source:
    """What a folder holds; of weights nothing is read yet. Its CLIP has to be named beside.

    Raises:
        UserError: a file is missing, or there are two for one part.
    """
    paths = {name: _only(folder, pattern) for name, pattern in NAMES.items()}
    predicts_x0, learned = DiffusionConfig(predicts="x0"), DiffusionConfig(learned_variance=True)
    raw: Any = {"embedding_scale": 1.0, "embedding_length": "raw"}
    networks = [
        Network(
            "prior",
            "prior",
            prior,
            PriorObjectiveConfig(diffusion=predicts_x0, drop_text=0.2, **raw),
            (paths["prior"], paths["stats"]),
            partial(_prior_weights, prior, paths["prior"], paths["stats"]),
        ),
        Network(
            "decoder",
            "decoder",
            decoder,
            DecoderObjectiveConfig(image_size=_SIDE, diffusion=learned, drop_text=0.3, **raw),
            (paths["decoder"],),
            partial(_weights, paths["decoder"], partial(decoder_weights, decoder)),
        ),
    ]
    objective = upsampler_objective(_SIDE, _LARGER, Schedule(DiffusionConfig(), 1.0))
    steps: dict[str, Literal["first_steps", "last_step"]]
    steps = {"up256": "first_steps", "up256_last": "last_step"}
    networks += [
        Network(
            name,
            "upsampler",
            upsampler,
            objective,
            (paths["up"],),
            partial(_weights, paths["up"], partial(upsampler_weights, upsampler, steps=which)),
        )
        for name, which in steps.items()
    ]
    return Source(tuple(networks), None, prior_part(PRIOR_LIMIT), decoder_part(), upsampler_part())


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        there = "no such file" if not found else f"got {len(found)} of them, expected one"
        raise UserError(f"{folder / pattern}: {there}")
    return found[0]


def _weights(path: Path, convert: Any) -> Mapping[str, Tensor]:
    try:
        found: Mapping[str, Tensor] = convert(read_tensors(path, _ENTRY))
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(f"{path}: {error}") from error
    return found


def _prior_weights(config: PriorConfig, path: Path, stats: Path) -> Mapping[str, Tensor]:
    measured = read_pickle(stats)
    shapes = [tuple(getattr(value, "shape", ())) for value in measured or ()]
    if shapes != [(config.embedding_dim,)] * 2:
        raise UserError(
            f"{stats}: got {shapes}, expected mean and deviation of {config.embedding_dim} numbers"
        )
    mean, std = measured
    return _weights(path, lambda theirs: prior_weights(config, theirs, mean, std))
