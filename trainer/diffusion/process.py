"""The forward process q(x_t | x_0) and the ways a network may parameterise its reverse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .schedules import Schedule, alphas_cumprod, zero_terminal_snr
from .transitions import posterior_variance, posterior_weights

Parameterisation = Literal["epsilon", "x0", "v"]


class Estimate(NamedTuple):
    """What a network says of x_t, in fp32, each [B, …].

    `x0` is its estimate of x_0. `fraction`, of networks that learn their variance, is where
    log σ² lies between log β̃ (0) and log β (1): Nichol & Dhariwal 2021, eq. 15. As there it is not
    held to [0, 1]; training keeps it near.
    """

    x0: Tensor
    fraction: Tensor | None = None


@dataclass(frozen=True)
class DiffusionConfig:
    """Schedule, number of training steps T, and what the network predicts.

    With `learned_variance` its output has twice the channels: the second half is the variance's.
    `zero_terminal_snr` (Lin et al. 2023) takes the last signal out of x_T, and with it what ε could
    tell there.
    """

    schedule: Schedule = "cosine"
    steps: int = 1000
    predicts: Parameterisation = "epsilon"
    learned_variance: bool = False
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and (self.predicts == "epsilon" or self.steps < 2):
            raise ValueError(
                f"zero_terminal_snr: got true with predicts {self.predicts} in {self.steps} steps,"
                " expected it with v or x0 in at least 2"
            )


class Diffusion:
    """q(x_t | x_0) = N(√ᾱ_t · x_0, (1 - ᾱ_t) · I), and conversions between x_0, ε and v.

    Timesteps are int64 [B] in 0 … T-1. v = √ᾱ · ε - √(1-ᾱ) · x_0 (Salimans & Ho 2022, appendix D).
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        alphas = alphas_cumprod(config.schedule, config.steps)
        # float64 [T]
        self.alphas = zero_terminal_snr(alphas) if config.zero_terminal_snr else alphas
        self._signal = self.alphas.sqrt().float()
        self._noise = (1 - self.alphas).sqrt().float()
        self._transitions = _transitions(self.alphas).float()  # [4, T]

    @property
    def steps(self) -> int:
        return self.config.steps

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t), shaped to multiply `like`. Each [B, 1, …]."""
        shape = (-1, *[1] * (like.dim() - 1))
        signal = self._signal.to(like.device)[t].view(shape)
        noise = self._noise.to(like.device)[t].view(shape)
        return signal, noise

    def transition(self, t: Tensor, like: Tensor) -> Iterator[Tensor]:
        """Of the step to t - 1: the weights of x_0 and x_t in its mean, log β̃ and log β.

        Shaped to multiply `like`, each [B, 1, …].
        """
        shape = (-1, *[1] * (like.dim() - 1))
        return (part.view(shape) for part in self._transitions.to(like.device)[:, t])

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A sample of q(x_t | x_0) made with the given standard normal noise."""
        a, s = self.levels(t, x0)
        return a * x0 + s * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should output for x_t."""
        a, s = self.levels(t, x0)
        match self.config.predicts:
            case "epsilon":
                return noise
            case "x0":
                return x0
            case "v":
                return a * noise - s * x0

    def x0_from(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's estimate of x_0, in fp32."""
        output, x_t = output.float(), x_t.float()
        a, s = self.levels(t, x_t)
        match self.config.predicts:
            case "epsilon":
                return (x_t - s * output) / a
            case "x0":
                return output
            case "v":
                return a * x_t - s * output

    def estimate(self, output: Tensor, x_t: Tensor, t: Tensor) -> Estimate:
        """The network's raw output, [B, C, …] or with learned variance [B, 2C, …], taken apart."""
        mean, spread = self.halves(output, x_t)
        fraction = None if spread is None else (spread.float() + 1) / 2
        return Estimate(self.x0_from(mean, x_t, t), fraction)

    def halves(self, output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `output` predicts, and its second half, in [-1, 1], where variance is learned.

        Raises:
            ValueError: the network has other channels than that.
        """
        wanted = x_t.shape[1] * (2 if self.config.learned_variance else 1)
        if output.shape[1] != wanted:
            raise ValueError(
                f"out_channels: got {output.shape[1]}, expected {wanted}"
                f" with learned_variance {self.config.learned_variance}"
            )
        if not self.config.learned_variance:
            return output, None
        mean, spread = output.chunk(2, dim=1)
        return mean, spread

    def epsilon_from(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from x_0 to x_t."""
        a, s = self.levels(t, x_t)
        return (x_t - a * x0) / s


def _transitions(alphas: Tensor) -> Tensor:
    """What `Diffusion.transition` gives, for every t. float64 [4, T].

    β̃ is 0 at t = 0, where that of t = 1 stands in (Nichol & Dhariwal 2021, section 3.1).
    """
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    of_x0, of_x_t = (weight / (1 - alphas) for weight in posterior_weights(alphas, before))
    smallest, largest = posterior_variance(alphas, before), 1 - alphas / before
    smallest[0] = smallest[1] if len(alphas) > 1 else largest[0]
    return torch.stack([of_x0, of_x_t, smallest.log(), largest.log()])


def mean_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Per-sample mean squared error in fp32. [B]"""
    return torch.square(output.float() - target.float()).flatten(1).mean(dim=1)
