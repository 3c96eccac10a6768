"""The uses on networks with random weights: what each promises holds whatever was learned."""

from dataclasses import replace

import pytest
import torch
from small_cascade import cascade
from torch import Tensor, nn

from base.errors import UserError
from trainer.diffusion.process import Diffusion
from trainer.objectives.conditions import to_pixels
from trainer.sampling import uses
from trainer.sampling.cascade import Cascade
from trainer.sampling.painting import inpaint, outpaint

SIDE = 32  # of a small cascade's pictures


def pictures(count: int, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    small = torch.randint(0, 256, (count, 3, 4, 4), generator=generator).float()
    large = torch.nn.functional.interpolate(small, (side, side), mode="bilinear")
    return large.round().to(torch.uint8)


@pytest.fixture(scope="module")
def model() -> Cascade:
    return cascade()


def close(one: Tensor, other: Tensor) -> bool:
    """Up to the rounding of products of another shape."""
    return bool((one.int() - other.int()).abs().max() <= 2)


class OfGaussians(nn.Module):
    """What a decoder would have learned of pixels that are N(0, 1/4) each, whatever they show."""

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__()
        self.diffusion = diffusion

    def conditions(self, *_: Tensor) -> tuple[Tensor, ...]:
        return ()

    def unet(self, x: Tensor, t: Tensor) -> Tensor:
        a, s = self.diffusion.levels(t, x)
        return a * x / 4 / (a**2 / 4 + s**2)


def test_latents_lead_back_to_the_picture(model: Cascade) -> None:
    """Nearly in a few steps as well, since the way back is refined."""
    given = pictures(2)
    wanted = torch.nn.functional.avg_pool2d(given.float() / 127.5 - 1, 4)
    for steps, error in ((5, 0.1), (50, 0.005)):
        part = model.decoder
        settings = part.settings.model_copy(update={"steps": steps})
        part = replace(part, settings=settings, network=OfGaussians(part.diffusion))
        knowing = replace(model, decoder=part)
        found = uses.latents(knowing, given)
        text, random = knowing.no_captions(2), knowing.random(0, range(2))
        made = knowing.decode(found.z_i, text, random, start=found.x_t, eta=0.0, plain=True)
        assert (made - wanted).abs().mean() < error


def test_a_picture_of_a_position_is_the_same_in_any_batch(model: Cascade) -> None:
    given = pictures(3)
    whole = uses.variations(model, given, model.random(5, range(3)), eta=1.0)
    assert whole.shape == (3, 3, SIDE, SIDE)
    for at in range(3):
        one = uses.variations(model, given[at : at + 1], model.random(5, [at]), eta=1.0)
        assert close(one[0], whole[at])


def test_eta_zero_varies_nothing_and_eta_one_does(model: Cascade) -> None:
    given = pictures(1).expand(2, -1, -1, -1)
    random = model.random(0, [0, 1])
    again = uses.reconstruct(model, given, model.random(0, [0, 0]))
    assert close(again[0], again[1])
    same = uses.variations(model, given, model.random(0, [0, 0]), eta=0.0)
    assert close(same, again)
    others = uses.variations(model, given, random, eta=1.0)
    assert not close(others[0], others[1])
    fresh = uses.variations(model, given, random, eta=0.0, invert=False)
    assert not close(fresh[0], fresh[1])


def test_an_interpolation_begins_and_ends_at_its_pictures(model: Cascade) -> None:
    one, other = pictures(2)[:1], pictures(2)[1:]
    random = model.random(0, [0] * 3)
    shares = torch.tensor([0.0, 0.5, 1.0])
    ends = (picture.expand(3, -1, -1, -1) for picture in (one, other))
    way = uses.interpolate(model, *ends, shares, random)
    again = uses.reconstruct(model, torch.cat([one, other]), model.random(0, [0, 0]))
    assert close(way[[0, 2]], again)
    assert not close(way[1], way[0])
    assert not close(way[1], way[2])


def test_a_way_between_captions_begins_and_ends_at_them(model: Cascade) -> None:
    random = model.random(0, [0] * 3)
    shares = torch.tensor([0.0, 0.5, 1.0])
    captions = (["a red circle"] * 3, ["snow"] * 3)
    way = uses.interpolate_texts(model, *captions, shares, random)
    back = uses.interpolate_texts(model, *reversed(captions), shares, random)
    assert close(way, back.flip(0))
    assert not close(way[0], way[2])


def test_a_text_difference_begins_at_the_picture(model: Cascade) -> None:
    given = pictures(1).expand(2, -1, -1, -1)
    shares = torch.tensor([0.0, 0.5])
    random = model.random(0, [0, 0])
    way = uses.text_diff(model, given, ["snow"] * 2, ["a red circle"] * 2, shares, random)
    assert close(way[:1], uses.reconstruct(model, given[:1], model.random(0, [0])))
    assert not close(way[0], way[1])


def test_all_directions_together_are_the_whole_embedding(model: Cascade) -> None:
    given = pictures(2)
    directions, mean = torch.linalg.qr(torch.randn(16, 16))[0], torch.randn(16)
    text, random = model.no_captions(2), model.random(0, range(2))
    whole = uses.pca(model, given, mean, directions, random)
    plain = to_pixels(model.upsample(model.decode(model.look(given), text, random), random))
    assert close(whole, plain)
    less = uses.pca(model, given, mean, directions[:4], random)
    assert not close(less, plain)


def test_a_negative_caption_changes_what_is_made(model: Cascade) -> None:
    plain = uses.text(model, ["snow"], model.random(0, [0]))
    other = uses.text(model, ["snow"], model.random(0, [0]), negative="a red circle")
    same = uses.text(model, ["snow"], model.random(0, [0]), negative="")
    assert torch.equal(plain, same)
    assert not torch.equal(plain, other)


def test_what_is_known_stays_pixel_by_pixel(model: Cascade) -> None:
    given = pictures(2)
    new = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bool)
    new[:, :, 5:20, 9:27] = True
    painted = inpaint(model, given, new, ["snow"] * 2, model.random(0, range(2)))
    assert painted.shape == given.shape
    assert torch.equal(painted.masked_select(~new), given.masked_select(~new))
    assert (painted != given).masked_select(new).float().mean() > 0.9
    alone = inpaint(model, given[1:], new[1:], ["snow"], model.random(0, [1]))
    assert close(alone[0], painted[1])


@pytest.mark.parametrize("size", [(32, 32), (32, 80), (50, 71)])
@pytest.mark.parametrize("caption", [None, "snow"])
def test_a_picture_stays_in_the_middle_of_a_larger_one(
    model: Cascade, size: tuple[int, int], caption: str | None
) -> None:
    given = pictures(1)
    captions = None if caption is None else [caption]
    made = outpaint(model, given, size, captions, model.random(0, [0]))
    height, width = size
    assert made.shape == (1, 3, height, width)
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    assert torch.equal(made[:, :, top : top + SIDE, left : left + SIDE], given)
    if size != (SIDE, SIDE):
        around = torch.ones(1, 1, *size, dtype=torch.bool)
        around[:, :, top : top + SIDE, left : left + SIDE] = False
        assert (made.masked_select(around) > 0).float().mean() > 0.5  # painted, not left black


def test_a_canvas_that_memory_has_no_place_for_is_refused(model: Cascade) -> None:
    with pytest.raises(UserError, match="expected at most 100,000,000"):
        outpaint(model, pictures(1), (10_001, 10_000), None, model.random(0, [0]))


def test_a_smaller_canvas_is_refused(model: Cascade) -> None:
    with pytest.raises(UserError, match="got 32×20, expected at least 32×32 pixels"):
        outpaint(model, pictures(1), (20, 32), None, model.random(0, [0]))
