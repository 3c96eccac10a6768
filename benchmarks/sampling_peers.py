"""Pictures by our cascade and by diffusers' UnCLIP pipeline: the same weights, steps and noise.

python -m benchmarks.sampling_peers [--rounds N] [--pictures B] [--bf16]

Prior and decoder with guidance, 25 steps each, and 7 of the upsampler; captions are given as what
the text tower makes of them. Both take turns, and are timed by part, by the processor's time. In a
round before, which is not counted, both have one noise, and their z_i and pictures are compared.
`--bf16` adds ours in 16 bits, where the processor has them; theirs does not run so on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from diffusers import UnCLIPScheduler
from diffusers.pipelines.deprecated.unclip.pipeline_unclip import UnCLIPPipeline
from torch import Tensor
from torch.nn import functional as F

from benchmarks.twins import DECODER, PRIOR, UPSAMPLER, decoders, priors, upsamplers, widened
from trainer.config import Precision
from trainer.diffusion.process import Diffusion, DiffusionConfig
from trainer.models.clip import TextStates
from trainer.rng import SampleRandom
from trainer.sampling.config import DecoderPart, PartConfig, PriorPart
from trainer.sampling.drawing import decode, sample_prior, upsample
from trainer.sampling.parts import Part, ready

_SIDE, _FACTOR, _STEPS, _LARGER_STEPS, _GUIDANCE = 32, 4, 25, 7, 4.0
_PARTS = ("prior", "decoder", "upsampler")
_NOISE = "diffusers.schedulers.scheduling_unclip.randn_tensor"
_CHANNELS = 32
Seconds = dict[str, float]


class Ours(NamedTuple):
    """The three networks, ready to be sampled."""

    prior: Part
    decoder: Part
    upsampler: Part


class Captions(NamedTuple):
    """What the text tower made of them, and of as many empty ones."""

    text: TextStates
    null: TextStates


def main() -> None:
    """Print seconds and ratios by part, and by how much the pictures differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    captions = _captions(options.pictures)
    pipeline, (ours, *low) = _networks(("fp32", "bf16") if options.bf16 else ("fp32",))
    for tables in ("as released", "in float64"):
        differences = _differences(ours, pipeline, captions)
        said = "largest difference, their tables {}: z_i {:.1e}, pictures {:.1e}"
        print(said.format(tables, *differences), flush=True)
        _in_double(pipeline)
    sides: dict[str, Callable[[], Seconds]] = {
        "diffusers": lambda: _theirs(pipeline, captions)[1],
        "ours": lambda: _ours(ours, captions),
    }
    if low:
        sides["ours, bf16"] = lambda: _ours(low[0], captions)
    seconds: dict[str, list[Seconds]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, side in sides.items():
            seconds[name].append(side())
    print(
        f"{torch.get_num_threads()} threads, {options.pictures} pictures, {options.rounds} rounds"
    )
    print(f"{'':12}" + "".join(f"{part:>12}{'ratio':>8}" for part in (*_PARTS, "all")))
    for name, taken in seconds.items():
        print(
            f"{name:12}"
            + "".join(_cell(part, taken, seconds["diffusers"]) for part in (*_PARTS, "all"))
        )


def _cell(part: str, taken: list[Seconds], theirs: list[Seconds]) -> str:
    ratio = statistics.median(b[part] / a[part] for a, b in zip(taken, theirs, strict=True))
    return f"{statistics.median(each[part] for each in taken):10.2f} s{ratio:7.2f}x"


def _captions(count: int) -> Captions:
    """Of 16 tokens and more."""
    torch.manual_seed(1)

    def states(tokens: int) -> TextStates:
        mask = (torch.arange(77) < tokens).expand(count, -1)
        width = PRIOR.text_width
        embedding = F.normalize(torch.randn(count, width), dim=-1)
        return TextStates(torch.randn(count, 77, width), mask, embedding, mask.long())

    return Captions(states(16), states(2))


def _networks(precisions: tuple[Precision, ...]) -> tuple[UnCLIPPipeline, list[Ours]]:
    prior = replace(PRIOR, layers=2)
    decoder = replace(DECODER, unet=widened(DECODER.unet, _CHANNELS))
    upsampler = replace(UPSAMPLER, unet=widened(UPSAMPLER.unet, _CHANNELS))
    larger = _SIDE * _FACTOR
    twins = (priors(prior), decoders(decoder, _SIDE), upsamplers(upsampler, larger))
    nets = [each.theirs.eval().requires_grad_(False) for each in twins]
    common = {"num_train_timesteps": 1000}
    small = {"variance_type": "fixed_small_log", **common}
    pipeline = UnCLIPPipeline(
        prior=nets[0],
        decoder=nets[1].network,
        text_encoder=None,
        tokenizer=None,
        text_proj=nets[1].projections,
        super_res_first=nets[2],
        super_res_last=nets[2],
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample=False, **small),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range", **common),
        super_res_scheduler=UnCLIPScheduler(**small),
    )
    pipeline.set_progress_bar_config(disable=True)
    configs = (prior, decoder, upsampler)
    return pipeline, [_sampled(precision, twins, configs) for precision in precisions]


def _sampled(precision: Precision, twins: Any, configs: Any) -> Ours:
    guided = {"run": "", "sampler": "ancestral", "guidance": _GUIDANCE, "steps": _STEPS}
    settings = (
        PriorPart(**guided, candidates=1),
        DecoderPart(**guided),
        PartConfig(run="", sampler="ancestral", steps=_LARGER_STEPS),
    )
    diffusions = (
        DiffusionConfig(predicts="x0"),
        DiffusionConfig(learned_variance=True),
        DiffusionConfig(),
    )
    parts = []
    for stage, setting, config, pair, diffusion in zip(
        _PARTS, settings, configs, twins, diffusions, strict=True
    ):
        objective = SimpleNamespace(
            image_size=_SIDE,
            embedding_length="unit",
            embedding_scale=1.0,
            factor=_FACTOR,
            antialias=True,
        )
        told: Any = SimpleNamespace(stage=stage, model=config, objective=objective)
        module = type(pair.ours)(config)
        module.load_state_dict(pair.ours.state_dict())
        network = ready(module, torch.device("cpu"), precision)
        parts.append(Part(setting, told, network, Diffusion(diffusion)))
    return Ours(*parts)


def _random(captions: Captions) -> SampleRandom:
    return SampleRandom(0, torch.arange(len(captions.null.mask)))


def _ours(parts: Ours, captions: Captions) -> Seconds:
    text, null = captions
    random = _random(captions)
    marks = [time.process_time()]
    z_i = sample_prior(parts.prior, text, null, random)
    marks.append(time.process_time())
    small = decode(parts.decoder, z_i, text, null, random)
    marks.append(time.process_time())
    upsample(parts.upsampler, small, random, "upsampler.0")
    return _between([*marks, time.process_time()])


def _between(marks: list[float]) -> Seconds:
    taken = {name: marks[i + 1] - marks[i] for i, name in enumerate(_PARTS)}
    return {**taken, "all": marks[-1] - marks[0]}


def _theirs(pipeline: UnCLIPPipeline, captions: Captions, **start: Tensor) -> tuple[Any, Seconds]:
    """Its pictures, float32 [B, H, W, 3] in [0, 1], and times of its parts: each begins with the
    timesteps of its scheduler."""
    told = (
        torch.cat([captions.null.embedding, captions.text.embedding]),
        torch.cat([captions.null.states, captions.text.states]),
        torch.cat([captions.null.mask, captions.text.mask]),
    )
    marks: list[float] = []
    with (
        patch.object(pipeline, "_encode_prompt", lambda *_: told),
        _marked(pipeline.prior_scheduler, marks),
        _marked(pipeline.decoder_scheduler, marks),
        _marked(pipeline.super_res_scheduler, marks),
    ):
        made = pipeline(
            prompt=[""] * len(captions.text.mask),
            prior_num_inference_steps=_STEPS,
            decoder_num_inference_steps=_STEPS,
            super_res_num_inference_steps=_LARGER_STEPS,
            prior_guidance_scale=_GUIDANCE,
            decoder_guidance_scale=_GUIDANCE,
            output_type="np",
            **start,
        )
    return made.images, _between([*marks, time.process_time()])


@contextmanager
def _marked(scheduler: UnCLIPScheduler, marks: list[float]) -> Iterator[None]:
    set_timesteps = scheduler.set_timesteps

    def marking(*arguments: Any, **options: Any) -> None:
        marks.append(time.process_time())
        set_timesteps(*arguments, **options)

    with patch.object(scheduler, "set_timesteps", marking):
        yield


def _in_double(pipeline: UnCLIPPipeline) -> None:
    """Its schedulers' tables in float64: of float32 1 - ᾱ_t / ᾱ_s has hardly a digit at first."""
    level = Diffusion(DiffusionConfig()).alphas
    for name in ("prior", "decoder", "super_res"):
        scheduler = getattr(pipeline, f"{name}_scheduler")
        before = torch.cat([torch.ones(1, dtype=torch.float64), level[:-1]])
        scheduler.alphas, scheduler.alphas_cumprod = level / before, level
        scheduler.betas = 1 - scheduler.alphas
        scheduler.one = torch.ones((), dtype=torch.float64)


def _differences(ours: Ours, pipeline: UnCLIPPipeline, captions: Captions) -> tuple[float, float]:
    """The largest of z_i at unit length, and of pictures in [-1, 1] from one z_i and one noise.

    The other pipeline does not bring z_i to unit length.
    """
    random = _random(captions)
    shapes = ((PRIOR.embedding_dim,), (3, _SIDE, _SIDE), (3, _SIDE * _FACTOR, _SIDE * _FACTOR))
    names = ("prior.0", "decoder", "upsampler.0")
    steps = (_STEPS, _STEPS, _LARGER_STEPS)
    noises = (
        random.normal(f"{name}.step.{step}", *shape)
        for name, shape, count in zip(names, shapes, steps, strict=True)
        for step in range(count - 1)
    )
    starts = ("prior_latents", "decoder_latents", "super_res_latents")
    start = {
        key: random.normal(f"{name}.start", *shape)
        for key, name, shape in zip(starts, names, shapes, strict=True)
    }
    seen: list[Tensor] = []
    hook = pipeline.text_proj.register_forward_pre_hook(
        lambda module, arguments, given: seen.append(given["image_embeddings"]), with_kwargs=True
    )
    with patch(_NOISE, lambda *_, **__: next(noises)):
        pictures, _ = _theirs(pipeline, captions, **start)
    hook.remove()
    text, null = captions
    z_i = sample_prior(ours.prior, text, null, random)
    small = decode(ours.decoder, seen[0], text, null, random)
    large = upsample(ours.upsampler, small, random, "upsampler.0")
    theirs = 2 * torch.from_numpy(pictures).permute(0, 3, 1, 2) - 1
    return (
        float((F.normalize(seen[0], dim=-1) - z_i).abs().max()),
        float((theirs - large.clamp(-1, 1)).abs().max()),
    )


if __name__ == "__main__":
    main()
