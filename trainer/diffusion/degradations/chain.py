"""What corrupts a picture: which steps, of which kinds and how strong, in which order.

BSR is the degradation of Zhang et al. 2021, "Designing a practical degradation model for deep blind
image super-resolution" (BSRGAN): blur, resizing, noise and JPEG, shuffled per picture. Kinds of
blur, kernel and noise have the shares of its authors' code. Different: what shrinks the picture for
good comes before and is the same for all; each step comes once, in every picture; resizing down
takes averages; half of the JPEGs keep all chroma; a camera's processing is not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from .blur import convolve, gaussian_kernels
from .jpeg import jpeg
from .noise import COLOUR, CORRELATED, GREY, channel_mixing, mix_channels
from .resampling import there_and_back


class Draws(Protocol):
    """The part of trainer.rng.SampleRandom that corruption uses."""

    def uniform(self, purpose: str, *shape: int) -> Tensor: ...
    def normal(self, purpose: str, *shape: int) -> Tensor: ...


@dataclass(frozen=True)
class DegradationConfig:
    """What corrupts the conditioning, and how much at most.

    `blur_sigma` is a range in pixels of the small picture, `blur_kernel` the side of what blurs
    (paper, 64→256: 0.6 with kernel 3; `bsr` takes what its widest Gaussian needs); `noise` a
    standard deviation in [-1, 1] pixel units; `jpeg_quality` the lowest quality; `shrink` the
    smallest scale of the resize. Only `bsr` uses the last three.
    """

    kind: Literal["none", "blur", "bsr"] = "blur"
    blur_sigma: tuple[float, float] = (0.0, 0.6)
    blur_kernel: Literal[3, 5, 7] = 3
    noise: float = 0.05
    jpeg_quality: int = 40
    shrink: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.blur_sigma
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"blur_sigma: got [{low}, {high}], expected 0 <= first <= second")
        if not 0 <= self.noise <= 2:
            raise ValueError(f"noise: got {self.noise}, expected 0 to 2")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality: got {self.jpeg_quality}, expected 1 to 100")
        if not 0 < self.shrink <= 1:
            raise ValueError(f"shrink: got {self.shrink}, expected more than 0, at most 1")


def degrade(x: Tensor, config: DegradationConfig, random: Draws) -> Tensor:
    """Corrupt float pictures in [-1, 1], [B, C, H, W], each by its own draws."""
    match config.kind:
        case "none":
            return x
        case "blur":
            low, high = config.blur_sigma
            sigma = low + (high - low) * random.uniform("blur_sigma")  # [B]
            return convolve(x, gaussian_kernels(sigma, config.blur_kernel // 2))
        case "bsr":  # its order depends on values, which a meta tensor has not
            return x if x.is_meta else bsr(x, config, random)


BLUR, RESIZE, NOISE, JPEG = range(4)


@dataclass(frozen=True)
class Chain:
    """What BSR does to each picture of a batch. [B], unless it says otherwise."""

    order: Tensor  # [B, 4]: which of BLUR, RESIZE, NOISE, JPEG comes first, second, …
    sigma: Tensor  # of the blur's long axis
    ratio: Tensor  # of its short axis to the long one: 1 is isotropic
    angle: Tensor
    scale: Tensor  # to this size and back
    down: Tensor  # the kernels of both: AREA, BILINEAR, BICUBIC
    up: Tensor
    deviation: Tensor  # of the noise
    mixing: Tensor  # [B, 3, 3]: of independent noise into the channels'
    quality: Tensor  # of JPEG
    halved: Tensor  # bool: 4:2:0


def draw_chain(config: DegradationConfig, random: Draws) -> Chain:
    """Orders are equally likely, and so are a resize's kernels, each way; a blur is isotropic in
    half of the pictures, chroma halved in half; noise is grey in 40 %, independent in the channels
    in 40 %, correlated in 20 %. Strengths are uniform between the weakest and the config's."""
    # One call for all: it costs the same for two dozen numbers as for one.
    drawn = random.uniform("bsr", 24)  # [B, 24]
    order, directions = drawn[:, :4], drawn[:, 4:13]
    sigma, ratio, angle, scale, deviation, quality, *kinds = drawn[:, 13:].unbind(dim=1)
    blur, down, up, noise, chroma = kinds
    noise_kind = torch.where(noise < 0.4, GREY, torch.where(noise < 0.8, COLOUR, CORRELATED))
    low, high = config.blur_sigma
    return Chain(
        order=order.argsort(dim=1),
        sigma=low + (high - low) * sigma,
        # Of two axes whose variances are uniform, the smaller by the larger one is uniform.
        ratio=torch.where(blur < 0.5, 1.0, ratio.sqrt()),
        angle=torch.pi * angle,
        scale=config.shrink + (1 - config.shrink) * scale,
        down=(3 * down).long(),
        up=(3 * up).long(),
        deviation=config.noise * deviation,
        mixing=channel_mixing(noise_kind, directions.view(-1, 3, 3)),
        quality=config.jpeg_quality + ((101 - config.jpeg_quality) * quality).floor(),
        halved=chroma < 0.5,
    )


def bsr(x: Tensor, config: DegradationConfig, random: Draws) -> Tensor:
    """The BSR chain: blur, resize, noise and JPEG, in an order shuffled per picture."""
    chain = draw_chain(config, random)
    h, w = x.shape[2:]
    reach = max(1, math.ceil(3 * config.blur_sigma[1]))  # of the batch it would tie samples
    kernels = gaussian_kernels(chain.sigma, reach, chain.angle, chain.ratio)
    resizes = {n: there_and_back(n, chain.scale, chain.down, chain.up)[:, None] for n in {h, w}}
    grain = mix_channels(random.normal("grain", 3, h, w), chain.mixing)
    grain = chain.deviation.view(-1, 1, 1, 1) * grain
    steps: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
        BLUR: lambda part, at: convolve(part, kernels[at]),
        RESIZE: lambda part, at: resizes[h][at] @ part @ resizes[w][at].mT,
        NOISE: lambda part, at: part + grain[at],
        JPEG: lambda part, at: jpeg(part, chain.quality[at], chain.halved[at]),
    }
    for turn in chain.order.T.cpu():  # [B]
        done = torch.empty_like(x)
        for name, step in steps.items():
            at = (turn == name).nonzero()[:, 0].to(x.device)
            if len(at):
                done[at] = step(x[at], at)
        x = done
    return x.clamp(-1, 1)
