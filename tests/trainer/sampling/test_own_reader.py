"""A decoder that reads captions itself, sampled: it sees what CLIP's context has no place for."""

from types import SimpleNamespace
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer

from trainer.diffusion.process import Diffusion, DiffusionConfig
from trainer.models.clip import Clip, ClipConfig, TextConfig, TextEncoder, VisionConfig
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.text_transformer import TextTransformerConfig
from trainer.models.unet import UNetConfig
from trainer.objectives.decoder import DecoderObjectiveConfig
from trainer.rng import SampleRandom
from trainer.sampling.config import DecoderPart
from trainer.sampling.drawing import decode, no_captions
from trainer.sampling.parts import Part

CLIP = ClipConfig(
    16, VisionConfig(32, 32, 1, head_width=16), TextConfig(32, 1, 2, context_length=12)
)
UNET = UNetConfig(
    channels=16, multipliers=(1, 2), blocks=1, attention_levels=(1,), head_width=16,
    context_width=24,
)  # fmt: skip
READER = TextTransformerConfig(context_length=20, width=16, layers=1, heads=2)


def decoder_part() -> Part:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = DecoderConfig(UNET, 16, 32, text_in_time=True, text=READER)
    network = Decoder(config).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if not name.startswith(("text.", "conditioner.text_norm")):  # these do not begin as zero
            parameter.normal_(0.0, 0.2, generator=generator)
    objective = DecoderObjectiveConfig(image_size=8, diffusion=DiffusionConfig(predicts="x0"))
    told: Any = SimpleNamespace(model=config, objective=objective)
    return Part(DecoderPart(run="", steps=2), told, network, Diffusion(objective.diffusion))


def test_words_beyond_clips_context_are_seen() -> None:
    torch.manual_seed(0)
    clip = Clip(CLIP).eval().requires_grad_(False).clip
    text = TextEncoder(clip, SimpleTokenizer(context_length=12)).lengthen(20)
    begin = "one two three four five six seven eight nine ten eleven"
    captions = text.encode([f"{begin} red", f"{begin} blue"])
    assert torch.equal(captions.embedding[0], captions.embedding[1])  # to CLIP they are one
    part, z_i = decoder_part(), torch.randn(1, 16).expand(2, -1)
    random = SampleRandom(0, torch.tensor([5, 5]))
    first, second = decode(part, z_i, captions, no_captions(text, 2), random)
    assert not torch.allclose(first, second, atol=1e-3)
    alone = text.encode([f"{begin} blue"])
    random = SampleRandom(0, torch.tensor([5]))
    again = decode(part, z_i[:1], alone, no_captions(text, 1), random)
    torch.testing.assert_close(again[0], second, atol=1e-4, rtol=1e-4)
