"""The cascade: caption → z_i (prior) → small picture (decoder) → larger ones (upsamplers)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from base.errors import UserError
from trainer.builders import load_encoders
from trainer.config import Precision
from trainer.engine.open import hardware_precision
from trainer.engine.processes import local_device
from trainer.models.clip import ImageEncoder, TextEncoder, TextStates
from trainer.models.space import EmbeddingSpace, Length
from trainer.objectives.conditions import to_signal
from trainer.rng import SampleRandom

from .ar_prior import ArPart
from .config import CascadeConfig
from .drawing import decode, decoder_denoiser, invert, no_captions, sample_prior, upsample
from .inputs import fitted
from .parts import Part, load_part, load_prior, load_upsampler


@dataclass(frozen=True)
class Cascade:
    """A trained cascade. All methods take and give whole batches on `device`.

    Randomness comes from a `SampleRandom`: the picture of a (seed, position) is the same in any
    batch.
    """

    config: CascadeConfig
    device: torch.device
    text: TextEncoder
    image: ImageEncoder | None  # None: of a CLIP that reads captions alone
    prior: Part | ArPart | None
    decoder: Part
    upsamplers: tuple[Part, ...]

    def __post_init__(self) -> None:
        reader = self.decoder.config.model.text  # a decoder's own
        if reader is not None:
            self.text.lengthen(reader.context_length)

    def steps(self) -> dict[str, nn.Module]:
        """By the names of their networks, in the order in which they work: what each goes through
        once a step, since what stays the same in all steps is computed before them."""
        found = {}
        if self.prior is not None:
            found["prior"] = self.prior.network.get_submodule("norm_out")
        found["decoder"] = self.decoder.network.get_submodule("unet")
        for number, part in enumerate(self.upsamplers, 1):
            found[f"upsampler {number}"] = part.network.get_submodule("unet")
            if part.last is not None:
                found[f"upsampler {number}, last step"] = part.last.get_submodule("unet")
        return found

    @property
    def space(self) -> EmbeddingSpace:
        """Of all embeddings that go through the cascade."""
        return self.text.space

    @property
    def guided(self) -> bool:
        """Whether prior or decoder is led away from what the caption does not say."""
        parts = (self.config.prior, self.config.decoder)
        return any(part is not None and part.guidance != 1 for part in parts)

    @property
    def side(self) -> int:
        """Of the finished pictures, in pixels."""
        side: int = self.decoder.config.objective.image_size
        for part in self.upsamplers:
            side *= part.config.objective.factor
        return side

    def captions(self, captions: Sequence[str]) -> TextStates:
        """Encode captions."""
        return self.text.encode(list(captions))

    def no_captions(self, count: int) -> TextStates:
        """The empty caption, `count` times."""
        return no_captions(self.text, count)

    def look(self, pictures: Tensor) -> Tensor:
        """z_i of pictures (uint8 [B, 3, H, H]) as CLIP sees them, float32 [B, D].

        Raises:
            UserError: the cascade's CLIP reads captions alone.
        """
        if self.image is None:
            raise UserError(
                f"clip: {self.config.clip} reads captions alone and sees no pictures; "
                "import the cascade with --clip, a CLIP with both halves"
            )
        return self.image(pictures.to(self.device))

    def sample_prior(
        self, text: TextStates, random: SampleRandom, null: TextStates | None = None
    ) -> Tensor:
        """z_i of captions, float32 [B, D]: of several samples the nearest to z_t.

        Raises:
            UserError: the cascade has no prior.
        """
        if self.prior is None:
            raise UserError(
                "prior: missing in cascade.yaml, expected one that makes z_i of captions"
            )
        null = self.no_captions(len(text.embedding)) if null is None else null
        return sample_prior(self.prior, text, null, random)

    def decode(
        self,
        image_embedding: Tensor,
        text: TextStates,
        random: SampleRandom,
        keep_image: bool = True,
        *,
        null: TextStates | None = None,
        start: Tensor | None = None,
        eta: float | None = None,
        plain: bool = False,
    ) -> Tensor:
        """The decoder's picture in [-1, 1], float32 [B, 3, S, S].

        image_embedding [B, D] in the cascade's space; without `keep_image` it is dropped, as in
        training. `null` is what guidance leads away from (the empty caption), `start` x_T where it
        is not drawn; with `eta` it is DDIM, with `plain` without guidance and thresholds, as x_T of
        `invert` wants it.
        """
        null = self.no_captions(len(image_embedding)) if null is None else null
        return decode(
            *(self.decoder, image_embedding, text, null, random, keep_image),
            *(start, eta, plain),
        )

    def invert(self, pictures: Tensor, image_embedding: Tensor, text: TextStates) -> Tensor:
        """x_T of pictures (uint8 [B, 3, H, H]) under z_i and caption, float32 [B, 3, S, S].

        From it `decode` makes the pictures again, with `eta` 0 and `plain`.
        """
        null = self.no_captions(len(image_embedding))
        denoise = decoder_denoiser(self.decoder, image_embedding, text, null, plain=True)
        small = fitted(pictures, self.decoder.config.objective.image_size)
        return invert(self.decoder, denoise, to_signal(small).to(self.device))

    def upsample(self, picture: Tensor, random: SampleRandom) -> Tensor:
        """All upsamplers in order: [B, 3, S, S] → [B, 3, S', S'], in [-1, 1]."""
        for level, part in enumerate(self.upsamplers):
            picture = upsample(part, picture, random, f"upsampler.{level}")
        return picture

    def random(self, seed: int, positions: Sequence[int]) -> SampleRandom:
        """The draws of positions; rows of the same position share theirs."""
        return SampleRandom(seed, torch.tensor(list(positions), device=self.device))


def load_cascade(config: CascadeConfig, precision: Precision | None = None) -> Cascade:
    """Load a cascade onto this process's device.

    Raises:
        UserError: it names runs that are not there or do not fit.
    """
    device = local_device()
    chosen = precision or hardware_precision(device)
    decoder = load_part(config.decoder, "decoder", device, chosen)
    if decoder.config.objective.condition != "image_embedding":
        raise UserError(
            f"decoder.run: {config.decoder.run} was trained with objective.condition "
            f"{decoder.config.objective.condition}, expected image_embedding: a cascade gives z_i"
        )
    length: Length = decoder.config.objective.embedding_length
    prior = None
    if config.prior is not None:
        prior = load_prior(config.prior, device, chosen)
        if _length_of(prior) != length:
            raise UserError(
                f"prior.run: {config.prior.run}: gives embeddings of length {_length_of(prior)}, "
                f"expected {length} as {config.decoder.run} takes them (objective.embedding_length)"
            )
    upsamplers = tuple(load_upsampler(item, device, chosen) for item in config.upsamplers)
    _require_chain(decoder, upsamplers)
    text, image = load_encoders(config.clip, EmbeddingSpace(length))
    return Cascade(
        config=config,
        device=device,
        text=text.to(device),
        image=image,
        prior=prior,
        decoder=decoder,
        upsamplers=upsamplers,
    )


def _require_chain(decoder: Part, upsamplers: Sequence[Part]) -> None:
    """Each upsampler was trained for pictures as large as what is before it gives."""
    before, side = decoder, decoder.config.objective.image_size
    for number, part in enumerate(upsamplers):
        objective = part.config.objective
        taken = objective.image_size // objective.factor
        if taken != side:
            raise UserError(
                f"upsamplers.{number}.run: {part.settings.run}: enlarges {taken}×{taken} pixels, "
                f"expected {side}×{side} as {before.settings.run} gives them"
            )
        before, side = part, objective.image_size


def _length_of(prior: Part | ArPart) -> Length:
    """Of the embeddings that a prior gives; one that is autoregressive knows directions alone."""
    if isinstance(prior, ArPart):
        return "unit"
    length: Length = prior.config.objective.embedding_length
    return length
