"""Objectives: what other trainers got wrong, and CLIP's loss in parts."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss
from processes import ROOT, environment
from safetensors.torch import load_file
from torch import nn

from trainer.batch import Batch
from trainer.models.clip import Clip, ClipConfig, TextConfig, TextEncoder, VisionConfig
from trainer.objectives.clip import ClipObjective, ClipObjectiveConfig
from trainer.objectives.conditions import drop_captions, to_pixels, to_signal
from trainer.objectives.decoder import DecoderObjective, DecoderObjectiveConfig
from trainer.objectives.negatives import OpposedCaptions
from trainer.objectives.prior import PriorObjective, PriorObjectiveConfig
from trainer.objectives.upsampler import UpsamplerObjective, UpsamplerObjectiveConfig
from trainer.rng import SampleRandom

RANKS = Path(__file__).with_name("clip_ranks.py")
CONFIG = ClipConfig(
    16, VisionConfig(32, 32, 1, head_width=16), TextConfig(32, 1, 2, context_length=12)
)
COUNT = 512


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    import open_clip

    torch.manual_seed(0)
    clip = Clip(CONFIG).eval().requires_grad_(False)
    return TextEncoder(clip.clip, open_clip.SimpleTokenizer(context_length=12))


def batch(text: TextEncoder, count: int = COUNT, side: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    rows = nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=-1)
    tokens = text.tokenizer([f"a picture of {i % 7}" for i in range(count)])
    image = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return Batch(torch.arange(count), image, tokens, rows, rows.flip(0))


class Spy(nn.Module):
    """Records what a network is given and answers zero."""

    def standardised(self, embedding):
        return embedding

    def forward(self, x_t, t, *rest):
        self.x_t, self.t, self.rest = x_t, t, rest
        return torch.zeros_like(x_t)


def test_prior_drops_captions_and_never_x_t_or_the_callers_tensors(text):
    objective = PriorObjective(PriorObjectiveConfig(embedding_scale=4.0), text)
    data, spy = batch(text), Spy()
    before = data.image_embedding.clone()
    for _ in range(2):
        loss = objective.loss(spy, data, SampleRandom(0, data.positions), None, 0)
    assert torch.equal(data.image_embedding, before)
    null = text(text.null_tokens[None]).embedding
    dropped = torch.isclose(spy.rest[2], null, atol=1e-5).all(dim=1)
    assert 0.05 < dropped.float().mean() < 0.16  # 10 %
    assert torch.equal(spy.rest[2][~dropped], data.text_embedding[~dropped])
    assert (spy.rest[1][dropped].sum(dim=1) == 2).all()  # the empty caption's two tokens
    assert (spy.x_t[dropped].abs().sum(dim=1) > 0).all()
    # A network that answers 0 errs by the clean embedding itself, whose scale is 4.
    torch.testing.assert_close(loss, torch.full((COUNT,), 16.0 / 16))


def test_timesteps_differ_between_samples_and_cover_the_range(text):
    objective = PriorObjective(PriorObjectiveConfig(), text)
    spy, data = Spy(), batch(text)
    objective.loss(spy, data, SampleRandom(0, data.positions), None, 0)
    assert len(spy.t.unique()) > COUNT / 2
    assert spy.t.min() < 30
    assert spy.t.max() > 970


def test_decoder_drops_image_and_caption_independently(text):
    config = DecoderObjectiveConfig(image_size=8, embedding_scale=4.0)
    objective = DecoderObjective(config, text)
    spy, data = Spy(), batch(text)
    objective.loss(spy, data, SampleRandom(0, data.positions), None, 0)
    z_i, keep_image, _, mask, z_t, tokens = spy.rest
    keep_text = mask.sum(dim=1) > 2
    torch.testing.assert_close(z_i, 4 * data.image_embedding)
    assert 0.85 < keep_image.float().mean() < 0.95
    assert 0.42 < keep_text.float().mean() < 0.58
    both = (keep_image & keep_text).float().mean()
    assert abs(both - 0.45) < 0.08
    null = text(text.null_tokens[None])
    assert (tokens[~keep_text] == null.tokens).all()
    assert torch.equal(tokens[keep_text], data.tokens[keep_text])
    torch.testing.assert_close(z_t[~keep_text], null.embedding.expand((~keep_text).sum(), -1))


def test_a_decoder_may_be_given_the_text_embedding_in_the_place_of_z_i(text):
    config = DecoderObjectiveConfig(embedding_scale=4.0, condition="text_embedding")
    spy, data = Spy(), batch(text, 6)
    DecoderObjective(config, text).loss(spy, data, SampleRandom(0, data.positions), None, 0)
    torch.testing.assert_close(spy.rest[0], 4 * data.text_embedding)


def test_a_loss_depends_on_seed_and_position_alone(text):
    config = DecoderObjectiveConfig(image_size=8)
    objective = DecoderObjective(config, text)
    data = batch(text, 6)

    def losses(rows: slice, seed: int = 0) -> torch.Tensor:
        part = Batch(*(None if v is None else v[rows] for v in vars(data).values()))
        return objective.loss(Spy(), part, SampleRandom(seed, part.positions), None, 0)

    whole = losses(slice(0, 6))
    parts = torch.cat([losses(slice(0, 1)), losses(slice(1, 4)), losses(slice(4, 6))])
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(whole, losses(slice(0, 6), seed=1))


def test_upsampler_is_conditioned_on_a_quarter_of_the_resolution(text):
    objective = UpsamplerObjective(UpsamplerObjectiveConfig(image_size=64, crop=16))
    assert objective.needs.crop == 16
    spy, data = Spy(), batch(text, 4, 16)
    loss = objective.loss(spy, data, SampleRandom(0, data.positions), None, 0)
    assert loss.shape == (4,)
    (enlarged,) = spy.rest
    assert enlarged.shape == (4, 3, 16, 16)
    assert enlarged.std() < 0.7 * to_signal(data.image).std()  # the detail is gone
    other = UpsamplerObjectiveConfig(image_size=64, crop=16, antialias=True)
    UpsamplerObjective(other).loss(spy, data, SampleRandom(0, data.positions), None, 0)
    assert not torch.allclose(spy.rest[0], enlarged, atol=1e-2)
    with pytest.raises(ValueError, match="expected a multiple of 4"):
        UpsamplerObjective(UpsamplerObjectiveConfig(crop=10))


def test_pixels_survive_the_way_to_signal_and_back():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_pixels(to_signal(every)), every)
    assert to_pixels(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_dropped_captions_are_the_empty_one():
    tokens = torch.arange(6).view(2, 3)
    out = drop_captions(tokens, torch.tensor([True, False]), torch.tensor([7, 8, 9]))
    assert out.tolist() == [[0, 1, 2], [7, 8, 9]]


# Of the eight captions of `clip_batch` some hold a token below 256, some do not.
OPPOSED = OpposedCaptions(
    {str(i): [str(i + 1), str(i + 2)] for i in range(1, 256)}, lambda word: [int(word)]
)


def clip_batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 1000, (count, 12), generator=generator)
    tokens[:, -1] = 49407
    return Batch(torch.arange(count), image, tokens)


def clip_step(
    sizes: list[int],
    scale: float = 14.3,
    opposed: OpposedCaptions | None = None,
    first: int = 0,
    total: int | None = None,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss and gradients of one step over micro-batches of these sizes.

    `first` and `total` place them in a global batch whose other samples are other ranks'.
    """
    torch.manual_seed(0)
    clip = Clip(CONFIG)
    with torch.no_grad():
        clip.clip.logit_scale.fill_(math.log(scale))
    total = total or sum(sizes)
    data = clip_batch(total)
    objective = ClipObjective(ClipObjectiveConfig(), CONFIG, opposed)
    starts = [first + sum(sizes[:i]) for i in range(len(sizes))]
    parts = [
        Batch(*(None if v is None else v[s : s + n] for v in vars(data).values()))
        for s, n in zip(starts, sizes, strict=True)
    ]
    context = objective.begin(clip, parts)
    value = 0.0
    for index, part in enumerate(parts):
        random = SampleRandom(0, part.positions)
        loss = objective.loss(clip, part, random, context, index).sum() / total
        loss.backward()
        value += loss.item()
    return value, {name: p.grad for name, p in clip.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    """Equal but for fp32's rounding, which is as large as a tensor's largest gradient makes it."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = 2e-6 * max(1.0, value.abs().max().item())
        torch.testing.assert_close(found[name], value, atol=atol, rtol=2e-3, msg=name)


def test_a_resnets_statistics_count_a_batch_once():
    """The pass that caches features leaves the running statistics of batch norms alone."""
    torch.manual_seed(0)
    config = ClipConfig(16, VisionConfig(32, 8, (1, 1, 1, 1)), TextConfig(32, 1, 2, 12))
    clip = Clip(config).train()
    before = {name: value.clone() for name, value in clip.named_buffers()}
    data = clip_batch(8)
    parts = [
        Batch(*(None if v is None else v[s : s + 4] for v in vars(data).values())) for s in (0, 4)
    ]
    objective = ClipObjective(ClipObjectiveConfig(), config)
    context = objective.begin(clip, parts)
    means = [name for name in before if name.endswith("running_mean")]
    assert means
    for name in means:
        assert torch.equal(clip.get_buffer(name), before[name])
    objective.loss(clip, parts[0], SampleRandom(0, parts[0].positions), context, 0)
    assert not any(torch.equal(clip.get_buffer(name), before[name]) for name in means)


@pytest.mark.parametrize("opposed", [None, OPPOSED])
@pytest.mark.parametrize("sizes", [[4, 4], [3, 5], [2, 2, 2, 2]])
def test_clip_in_micro_batches_is_clip_on_the_whole_batch(sizes, opposed):
    whole, whole_grads = clip_step([8], opposed=opposed)
    value, grads = clip_step(sizes, opposed=opposed)
    assert value == pytest.approx(whole, rel=1e-5)
    assert_same_gradients(grads, whole_grads)


@pytest.mark.parametrize(("total", "opposed"), [(9, False), (8, True), (7, True)])
def test_clip_on_two_ranks_is_clip_on_the_whole_batch(tmp_path, total, opposed):
    """Also where the ranks' shares differ by a sample."""
    arguments = [RANKS, tmp_path, total, int(opposed)]
    ranks = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments), str(rank)],
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
    found = load_file(tmp_path / "sums.safetensors")
    value, grads = clip_step([total], opposed=OPPOSED if opposed else None)
    assert found.pop("loss").item() == pytest.approx(value, rel=1e-5)
    assert_same_gradients(found, grads)


def test_clips_loss_is_open_clips():
    torch.manual_seed(0)
    clip, data = Clip(CONFIG), clip_batch(8)
    value, _ = clip_step([8])
    from trainer.models.clip import normalise_pixels

    features = clip(normalise_pixels(data.image), data.tokens)
    scale = torch.tensor(14.3)
    assert value == pytest.approx(ClipLoss()(features.image, features.text, scale).item(), rel=1e-5)


def test_the_logit_scale_is_clipped():
    assert clip_step([8], scale=1e4)[0] == pytest.approx(clip_step([8], scale=100.0)[0], rel=1e-6)
