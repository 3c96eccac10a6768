"""What a network is trained to lower: a weighted squared error, and the bound of its variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .bound import bound_term
from .process import Diffusion, mean_squared_error


@dataclass(frozen=True)
class LossConfig:
    """Weights of the error over noise levels, and of the bound.

    `uniform`: the plain squared error of what is predicted. `min_snr` (Hang et al. 2023): the error
    of x_0 weighs min(SNR, `gamma`), 5 without a value. `p2` (Choi et al. 2022): the error of ε
    weighs 1 / (`p2_k` + SNR)^`gamma`, 1 without a value. Both are turned into weights of what the
    network predicts. `bound`: of the variational bound, which trains a learned variance and nothing
    else (Nichol & Dhariwal 2021, eq. 16: 0.001).
    """

    weighting: Literal["uniform", "min_snr", "p2"] = "uniform"
    gamma: float | None = None
    p2_k: float = 1.0
    bound: float = 0.001

    def __post_init__(self) -> None:
        for name in ("gamma", "p2_k", "bound"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}: got {value}, expected at least 0")
        if self.gamma is not None and self.weighting == "uniform":
            raise ValueError(f"gamma: got {self.gamma} with weighting uniform, which has none")


def error_weights(diffusion: Diffusion, config: LossConfig, t: Tensor) -> Tensor:
    """The weight of each sample's squared error of what the network predicts, fp32 [B]."""
    if config.weighting == "uniform":
        return torch.ones(len(t), device=t.device)
    alphas = diffusion.alphas
    snr = alphas / (1 - alphas)  # float64 [T]
    if config.weighting == "min_snr":
        of_x0 = snr.clamp(max=5.0 if config.gamma is None else config.gamma)
    else:
        of_x0 = snr / (config.p2_k + snr) ** (1.0 if config.gamma is None else config.gamma)
    # An error of x_0 is one of ε times 1/SNR, and one of v times 1/(1 + SNR), squared.
    match diffusion.config.predicts:
        case "epsilon":
            weights = of_x0 / snr
        case "x0":
            weights = of_x0
        case "v":
            weights = of_x0 / (1 + snr)
    return weights.float().to(t.device)[t]


def denoising_loss(
    diffusion: Diffusion,
    config: LossConfig,
    output: Tensor,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    levels: bool,
) -> Tensor:
    """Each sample's loss, fp32 [B], for the network's raw `output` on x_t of x_0, t and noise.

    With a learned variance it is L_simple + λ · L_vlb, of which L_vlb = T · L_t is an estimate from
    one t; through L_vlb no gradient reaches the mean. `levels` as for `bound_term`.
    """
    mean, spread = diffusion.halves(output, x0)
    error = mean_squared_error(mean, diffusion.target(x0, t, noise))
    if config.weighting != "uniform":
        error = error * error_weights(diffusion, config, t)
    if spread is None:
        return error
    x_t = diffusion.add_noise(x0, t, noise)
    held = torch.cat([mean.detach(), spread], dim=1)
    term = bound_term(diffusion, diffusion.estimate(held, x_t, t), x0, x_t, t, levels)
    return error + config.bound * diffusion.steps * term
