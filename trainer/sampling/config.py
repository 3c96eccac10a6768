"""cascade.yaml: which runs make up a cascade, and how each is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from base.config import Config, load_config
from base.errors import UserError

Steps = Annotated[int, Field(ge=1)]
Sigma = Annotated[float, Field(ge=0)]
Weights = Annotated[str, Field(pattern=r"^(raw|ema(_0\.\d{3})?)$")]  # ema_0.050: see ema.powers


class NetworkConfig(Config):
    """A RUN at a sample count (None: its latest checkpoint), and which of its weights."""

    run: str  # a folder, relative to cascade.yaml
    samples: int | None = None
    weights: Weights = "ema"


class PartConfig(NetworkConfig):
    """A network and its sampler.

    `ddim` is deterministic at eta 0; `ancestral` draws noise at every step (Ho et al. 2020), of
    learned size where the network learns it. `dpm++` (DPM-Solver++ 2M) and `heun`, which asks the
    network twice a step, are deterministic and of second order. `analytic` (Analytic-DPM) is
    ancestral with the best size of noise, and needs what `unclip checkpoint analytic` measures.
    """

    sampler: Literal["ddim", "ancestral", "dpm++", "heun", "analytic"] = "ddim"
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    steps: Steps = 25

    @model_validator(mode="after")
    def _has_eta(self) -> PartConfig:
        if self.eta > 0 and self.sampler != "ddim":
            raise ValueError(f"eta: got {self.eta} with sampler {self.sampler}: only ddim has it")
        return self


class GuidedPart(PartConfig):
    """Classifier-free guidance by a `guidance` other than 1.

    Only noise levels σ = √((1 - ᾱ) / ᾱ) in `guidance_interval`, above its first number and up to
    its second, are guided (Kynkäänniemi et al. 2024; None: all). `guidance_rescale`: the share of
    the deviation that guidance adds which is taken back (Lin et al. 2023).
    """

    guidance: Annotated[float, Field(ge=0)]
    guidance_interval: tuple[Sigma, Sigma] | None = None
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _guides(self) -> GuidedPart:
        interval = self.guidance_interval
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError(f"guidance_interval: got {list(interval)}, expected [LOW, HIGH]")
        for name in ("guidance_interval", "guidance_rescale"):
            if getattr(self, name) and self.guidance == 1:
                raise ValueError(f"{name}: guidance is 1, which guides nothing")
        return self


class PriorPart(GuidedPart):
    """Guidance on the caption; of `candidates` samples the one with the largest z_i·z_t is kept
    (paper section 2.2). The RUN is of stage prior, or of ar_prior: that one has no sampler's steps,
    and draws z_i·z_t from the part of the data's distribution above `dot_from`.

    `limit`: coordinates of predictions are kept in [-limit, limit], in the space of the diffusion
    (Karlo: 5); None: they are not."""

    guidance: Annotated[float, Field(ge=0)] = 1.0
    limit: Annotated[float, Field(gt=0)] | None = None
    candidates: Annotated[int, Field(ge=1)] = 2
    temperature: Annotated[float, Field(ge=0)] = 1.0  # of ar_prior's tokens; 0: the likeliest
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # of ar_prior: tokens less likely are left out
    dot_from: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of ar_prior; paper: the top half


class DecoderPart(GuidedPart):
    """Guidance on z_i and caption together; predictions are kept in [-1, 1] by clipping, or by a
    quantile of their own (dynamic thresholding)."""

    guidance: Annotated[float, Field(ge=0)] = 3.0
    threshold: Literal["static", "dynamic"] = "static"


class UpsamplerPart(PartConfig):
    """`last_step`: another RUN whose network takes the last timestep alone, as in Karlo."""

    last_step: NetworkConfig | None = None

    def runs(self) -> tuple[NetworkConfig, ...]:
        """The RUNs of its networks."""
        return (self,) if self.last_step is None else (self, self.last_step)


class CascadeConfig(Config):
    """A cascade: CLIP, prior, decoder, upsamplers in order. Without a prior it makes pictures of
    pictures alone."""

    version: Literal[1] = 1
    clip: str  # as the runs' `clip`; a folder relative to cascade.yaml
    prior: PriorPart | None = None
    decoder: DecoderPart
    upsamplers: tuple[UpsamplerPart, ...] = ()


N = TypeVar("N", bound=NetworkConfig)
Change = Callable[[str, NetworkConfig], dict[str, object]]
"""A network and its place in the file, such as `prior` → what is to be other."""


def with_weights(config: CascadeConfig, weights: str) -> CascadeConfig:
    """The same cascade, with these weights of every network but CLIP."""
    return with_networks(config, lambda _, network: {"weights": weights})


def with_networks(config: CascadeConfig, change: Change) -> CascadeConfig:
    """The same cascade, `change` made to every network but CLIP."""

    def changed(name: str, network: N) -> N:
        return network.model_copy(update=change(name, network))

    def upsampler(name: str, item: UpsamplerPart) -> UpsamplerPart:
        last = item.last_step
        last = None if last is None else changed(f"{name}.last_step", last)
        return changed(name, item).model_copy(update={"last_step": last})

    larger = enumerate(config.upsamplers)
    return config.model_copy(
        update={
            "prior": None if config.prior is None else changed("prior", config.prior),
            "decoder": changed("decoder", config.decoder),
            "upsamplers": tuple(upsampler(f"upsamplers.{at}", item) for at, item in larger),
        }
    )


def with_guidance(config: CascadeConfig, guidance: float) -> CascadeConfig:
    """The same cascade, with this guidance of the decoder; 1 is none, and has no settings."""
    chosen: dict[str, object] = {"guidance": guidance}
    if guidance == 1:
        chosen |= {"guidance_interval": None, "guidance_rescale": 0.0}
    return config.model_copy(update={"decoder": config.decoder.model_copy(update=chosen)})


def load_cascade_config(path: Path, overrides: Sequence[str] = ()) -> CascadeConfig:
    """Read cascade.yaml, or the one in a folder; folders in it become absolute.

    `overrides` such as "decoder.steps=50" come after the file.

    Raises:
        UserError: missing or malformed.
    """
    path = path / "cascade.yaml" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a cascade.yaml or a folder with one")
    config = load_config(path, CascadeConfig, overrides)
    home = path.resolve().parent

    def placed(name: str) -> str:
        return str(home / name) if (home / name).exists() else name

    found = with_networks(config, lambda _, network: {"run": placed(network.run)})
    return found.model_copy(update={"clip": placed(config.clip)})
