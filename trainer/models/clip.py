"""CLIP: any open_clip model, its training face, and the frozen text encoder of the later stages.

open_clip brings transformers and timm, longer to import than torch: it is when a CLIP is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import fast_attention_of_others
from .space import EmbeddingSpace

UNIT = EmbeddingSpace()
Tokenizer = Callable[..., Tensor]
"""Captions, and `context_length` where it is not the model's own → tokens, int64 [B, L]."""


@dataclass(frozen=True)
class VisionConfig:
    """A vision tower, in open_clip's terms: a transformer over patches, or with four `layers` a
    ResNet (Radford et al. 2021, section 2.4), which learns shapes from far fewer pictures.

    A ResNet's batch norms see one micro-batch of one rank: only without them is a step in several
    micro-batches, or on several ranks, exactly the one on the whole batch.
    """

    image_size: int
    width: int
    layers: int | tuple[int, int, int, int]
    patch_size: int = 16  # of a transformer
    head_width: int = 64


@dataclass(frozen=True)
class TextConfig:
    """A text transformer, in open_clip's terms."""

    width: int
    layers: int
    heads: int
    context_length: int = 77
    vocab_size: int = 49408


@dataclass(frozen=True)
class ClipConfig:
    """An open_clip model described by its sizes."""

    embed_dim: int
    vision: VisionConfig
    text: TextConfig

    def open_clip(self) -> dict[str, Any]:
        """open_clip's own `model_cfg`."""
        return {
            "embed_dim": self.embed_dim,
            "vision_cfg": asdict(self.vision),
            "text_cfg": asdict(self.text),
            # DeepSpeed 0.19 cannot broadcast a parameter without dimensions in bf16.
            "nonscalar_logit_scale": True,
        }


class ClipFeatures(NamedTuple):
    """Unit-length fp32 features of pictures and of captions, [their number, D], and the logit scale
    (a scalar)."""

    image: Tensor
    text: Tensor
    logit_scale: Tensor


class Clip(nn.Module):
    """open_clip's CLIP for training: features are normalised in fp32 whatever the weights are."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        import open_clip

        self.config = config
        self.clip = open_clip.CLIP(**config.open_clip())

    def compute_blocks(self) -> list[nn.Module]:
        """The transformers' blocks; a ResNet's have batch norms, which count every call."""
        towers = (getattr(self.clip.visual, "transformer", None), self.clip.transformer)
        return [block for tower in towers if tower is not None for block in tower.resblocks]

    def forward(self, image: Tensor, tokens: Tensor) -> ClipFeatures:
        """image float [B, 3, S, S], normalised; tokens int64 [any number, L]."""
        with fast_attention_of_others(image.device):
            image_features = self.clip.encode_image(image.to(self.clip.logit_scale.dtype))
            text_features = run_text_tower(self.clip, tokens)[1]
        return ClipFeatures(
            F.normalize(image_features.float(), dim=-1),
            F.normalize(text_features.float(), dim=-1),
            self.clip.logit_scale.float().exp().squeeze(),
        )


def normalise_pixels(image: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] → float32, with the mean and deviation that open_clip uses."""
    import open_clip

    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=image.device).view(1, 3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD, device=image.device).view(1, 3, 1, 1)
    return (image.float() / 255 - mean) / std


def describe_for_open_clip(config: ClipConfig) -> dict[str, Any]:
    """The contents of open_clip's own config file, with the preprocessing of our training."""
    return {
        "model_cfg": config.open_clip(),
        "preprocess_cfg": open_clip_preprocessing(),
    }


def open_clip_preprocessing() -> dict[str, Any]:
    """What CLIP's pictures go through, as open_clip's config file says it."""
    import open_clip

    return {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def weights_for_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `Clip` under open_clip's own names."""
    return {name.removeprefix("clip."): value.contiguous() for name, value in weights.items()}


def load_open_clip(name: str, weights: Path | None = None) -> nn.Module:
    """A frozen fp32 open_clip model: `local-dir:FOLDER`, or a model's name and a weights file.

    Raises whatever open_clip raises for what it cannot load; a pickle is read as weights only.
    """
    import open_clip

    pretrained = None if weights is None else str(weights)
    with _without_warnings():
        model: nn.Module = open_clip.create_model_from_pretrained(
            name, pretrained, return_transform=False, weights_only=True
        )
    return model.eval().requires_grad_(False)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """open_clip warns of random weights: those of a `local-dir:` it has not read yet, and others
    are not wanted."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def outline_open_clip(name: str) -> nn.Module:
    """The same model as shapes alone, on torch's meta device; its weights need not be there."""
    import open_clip

    with torch.device("meta"), _without_warnings():
        model: nn.Module = open_clip.create_model(
            name, load_weights=False, pretrained_text=False, device="meta"
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that belongs to an open_clip model, named as in `load_open_clip`."""
    import open_clip

    tokenizer: Tokenizer = open_clip.get_tokenizer(name)
    return tokenizer


def _text_tower(clip: nn.Module) -> Any:
    """open_clip's two classes hold the same parts, one of them inside `text`."""
    return getattr(clip, "text", clip)


def _end(tokens: Tensor) -> Tensor:
    """Place of the end token, which has the highest id. [B]"""
    return tokens.argmax(dim=1)


def _shortened(tokens: Tensor, length: int) -> Tensor:
    """The first `length` of tokens [B, L], the last of them the end token where it was cut off."""
    if tokens.shape[1] <= length:
        return tokens
    places = torch.arange(length, device=tokens.device)
    cut = (_end(tokens)[:, None] >= length) & (places == length - 1)  # [B, length]
    ends = tokens.amax(dim=1, keepdim=True)  # the end token's number is the highest
    return torch.where(cut, ends, tokens[:, :length])


def run_text_tower(clip: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """tokens int64 [B, L] → states [B, longest caption, W] after the final norm, and their
    projection at the end token [B, D], not normalised.

    open_clip's encode_text; on a CPU without the padding after the longest caption: attention is
    causal, so nothing before it changes. (A GPU would have to be waited for to know the length.)
    """
    tower, end = _text_tower(clip), _end(tokens)
    length = int(end.max()) + 1 if tokens.device.type == "cpu" else tokens.shape[1]
    hidden = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
    mask = tower.attn_mask[:length, :length]
    states = tower.ln_final(tower.transformer(hidden, attn_mask=mask))  # [B, length, W]
    pooled = states[torch.arange(len(tokens), device=tokens.device), end]
    projection = tower.text_projection
    return states, projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


class TextStates(NamedTuple):
    """What a caption is to the prior and the decoder."""

    states: Tensor  # [B, L, W], after the final layer norm; undefined where the mask is False
    mask: Tensor  # bool [B, L], True up to the end token
    embedding: Tensor  # float32 [B, D], of the encoder's space
    tokens: Tensor  # int64 [B, at least L], for a decoder that reads them itself


class TextEncoder:
    """A frozen CLIP's text tower: token states as in Karlo, and the text embedding z_t."""

    def __init__(self, clip: nn.Module, tokenizer: Tokenizer, space: EmbeddingSpace = UNIT) -> None:
        self.module, self.space = clip, space
        self._tower = _text_tower(clip)
        if not hasattr(self._tower, "ln_final"):
            raise ValueError(
                "clip: got a Hugging Face text tower, expected open_clip's transformer"
            )
        self.tokenizer = tokenizer
        self.null_tokens: Tensor = tokenizer([""])[0]  # [L]
        self._seen = len(self.null_tokens)

    @property
    def width(self) -> int:
        """Width W of the token states."""
        return int(self._tower.ln_final.normalized_shape[0])

    @property
    def context_length(self) -> int:
        """Number of tokens that a caption is given as: CLIP's own, unless `lengthen` says more."""
        return len(self.null_tokens)

    @property
    def embedding_dim(self) -> int:
        """D of the embeddings."""
        return self(self.null_tokens[None]).embedding.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """Move the tower to a device and a precision."""
        self.module.to(device, dtype)
        self.null_tokens = self.null_tokens.to(device)
        return self

    def lengthen(self, length: int) -> TextEncoder:
        """Take captions of up to `length` tokens, where that is more than CLIP's own number: CLIP
        sees the beginning of them, as its tokenizer would have cut it."""
        more = max(0, length - len(self.null_tokens))
        self.null_tokens = F.pad(self.null_tokens, (0, more))
        return self

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> TextStates:
        """tokens int64 [B, as many as `context_length`]."""
        seen = _shortened(tokens, self._seen)  # [B, L]
        with fast_attention_of_others(tokens.device):
            states, pooled = run_text_tower(self.module, seen)
        states = F.pad(states, (0, 0, 0, seen.shape[1] - states.shape[1]))  # [B, L, W]
        mask = torch.arange(seen.shape[1], device=tokens.device) <= _end(seen)[:, None]
        return TextStates(states, mask, self.space.project(pooled), tokens)

    def encode(self, captions: list[str]) -> TextStates:
        """Tokenise and encode captions."""
        tokens = self.tokenizer(captions, context_length=self.context_length)
        return self(tokens.to(self.null_tokens.device))


class ImageEncoder:
    """A frozen CLIP's image tower: the image embedding z_i."""

    def __init__(self, clip: nn.Module, space: EmbeddingSpace = UNIT) -> None:
        self.module: Any = clip
        self.space = space

    @property
    def side(self) -> int:
        """Of the pictures that it sees."""
        side = self.module.visual.image_size
        return int(side if isinstance(side, int) else side[0])

    def __call__(self, image: Tensor) -> Tensor:
        """Square pictures, uint8 [B, 3, H, H] → float32 [B, D], of the encoder's space."""
        return self.space.project(self.project(image))

    @torch.no_grad()
    def project(self, image: Tensor) -> Tensor:
        """The same as CLIP's last layer gives it, of any length."""
        size = (self.side, self.side)
        sized = F.interpolate(image.float(), size, mode="bicubic", antialias=True)
        pixels = normalise_pixels(sized.round().clamp(0, 255))
        with fast_attention_of_others(image.device):
            projected: Tensor = self.module.encode_image(pixels).float()
        return projected
