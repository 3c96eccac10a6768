"""A stage as shapes alone, on torch's meta device: what a step computes and keeps for backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from base.errors import UserError
from trainer.batch import Batch, Needs
from trainer.config import AnyTrainConfig, Precision
from trainer.engine.base import DTYPES
from trainer.models.attention import written_out
from trainer.objectives.base import Parts
from trainer.planning.alive import Alive
from trainer.rng import SampleRandom
from trainer.stages import STAGES

META = torch.device("meta")
Kind = Literal["cuda", "cpu"]
_COUNTED = 2  # samples: a batch norm refuses one


def outline(config: AnyTrainConfig, precision: Precision) -> Parts:
    """Model and objective without a byte of weights; the CLIP that `config` names may be absent.

    Raises:
        UserError: the config's values do not go together.
    """
    train = config.train.model_copy(update={"precision": precision})
    try:
        with META:
            parts = STAGES[config.stage].build(config.model_copy(update={"train": train}), META)
    except ValueError as error:
        raise UserError(f"{config.stage}: {error}") from error
    dtype = DTYPES[precision]
    parts.model.train().to(dtype)
    return parts


def flops_per_sample(config: AnyTrainConfig, parts: Parts) -> int:
    """Multiplications and additions of one sample's forward and backward pass.

    Those of a frozen text tower are among them; what is computed twice to save memory, or to cache
    features for a contrastive loss, is not: this is what MFU is about.
    """
    batch = _example(config, parts.objective.needs, _COUNTED)
    with FlopCounterMode(display=False) as counter:
        _pass(parts, batch, None)
    return int(counter.get_total_flops()) // _COUNTED


def activation_bytes(config: AnyTrainConfig, parts: Parts, micro: int, kind: Kind) -> int:
    """The most bytes alive at once in a micro-batch of `micro`, beside weights and gradients.

    `kind` decides whether attention keeps its matrices for the backward pass: a GPU does not.
    """
    batches = [_example(config, parts.objective.needs, micro)]
    if config.train.batch > micro:  # others' samples, of which a contrastive loss sees the features
        batches.append(_example(config, parts.objective.needs, config.train.batch - micro))
    for parameter in parts.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    held = [*parts.model.parameters(), *parts.model.buffers()]
    gradients = [parameter.grad for parameter in held if parameter.grad is not None]
    with _attention_of(kind):
        context = parts.objective.begin(parts.model, batches)
        with Alive([*held, *gradients]) as alive:
            _pass(parts, batches[0], context)
    return int(alive.peak)


def text_tower(parts: Parts) -> nn.Module | None:
    """The frozen CLIP that the objective reads captions with."""
    text = getattr(parts.objective, "text", None)
    return None if text is None else text.module


def _pass(parts: Parts, batch: Batch, context: object | None) -> None:
    random = SampleRandom(0, batch.positions)
    loss = parts.objective.loss(parts.model, batch, random, context, 0).sum()
    loss.backward()  # type: ignore[no-untyped-call]


def _example(config: AnyTrainConfig, needs: Needs, size: int) -> Batch:
    side = needs.crop or needs.image_size
    shape = (size, getattr(config.model, "embedding_dim", 0))
    return Batch(
        torch.zeros(size, dtype=torch.int64, device=META),
        None if side is None else torch.zeros(size, 3, side, side, dtype=torch.uint8, device=META),
        torch.zeros(size, needs.context_length, dtype=torch.int64, device=META)
        if needs.tokens
        else None,
        torch.zeros(shape, device=META) if needs.embeddings else None,
        torch.zeros(shape, device=META) if needs.embeddings else None,
        torch.zeros(size, device=META) if needs.norms else None,
        torch.zeros(size, device=META) if needs.norms else None,
    )


@contextmanager
def _attention_of(kind: Kind) -> Iterator[None]:
    """Attention as a GPU computes it when there is a mask, or as our models do on a CPU.

    There it is that of few scores: where there are many, ours keep fewer than is counted. Meta
    tensors would take a third way, which computes in float32. It holds in every thread: what is
    computed again in a backward pass is not in this one.
    """
    with patch.object(
        F, "scaled_dot_product_attention", _fused if kind == "cuda" else _written_out
    ):
        yield


def _written_out(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **more: Any
) -> Tensor:
    if attn_mask is None or attn_mask.dtype == torch.bool:
        return written_out(q, k, v, attn_mask)
    # Of other people's modules, in torch's products: on a CPU they keep their precision.
    root = q.shape[-1] ** -0.25
    scores = (q * root) @ (k * root).transpose(-1, -2) + attn_mask
    out: Tensor = scores.softmax(dim=-1) @ v
    return out


def _fused(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **more: Any
) -> Tensor:
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=q.dtype).expand(*q.shape[:3], k.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = kernel(q, k, v, bias, True, is_causal=bool(more.get("is_causal")))[0]
    return out
