"""What may be done to a model's blocks one by one: recomputing activations, and compiling.

A model names its blocks; it knows nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from base.errors import UserError, one_line
from trainer.config import LoopConfig
from trainer.models.unet import UNet

_FORMS = 8  # of one block's input that may be compiled: shares of a batch, training or not
_KERNELS: dict[SDPBackend, Callable[[], bool]] = {  # of a CPU too, whatever the module is called
    SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled,
    SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled,
    SDPBackend.MATH: cuda.math_sdp_enabled,
}


@runtime_checkable
class HasBlocks(Protocol):
    """A model with a plan."""

    def compute_blocks(self) -> Sequence[nn.Module]:
        """The sub-modules that do nearly all the work, none inside another, each called once a
        forward pass, none with a state that a second call would change."""
        ...


def apply_plan(module: nn.Module, train: LoopConfig, device: torch.device) -> None:
    """Compile the blocks of `module`, let them forget their activations, turn its pictures.

    What `train` asks of these. Names of parameters stay. Before an engine takes the module over.

    Raises:
        UserError: the model has no U-Net or names no blocks, or nothing can be compiled here.
    """
    if train.channels_last:
        _turn_pictures(module)
    asked = [name for name in ("checkpoint_activations", "compile") if getattr(train, name)]
    if not asked:
        return
    if not isinstance(module, HasBlocks):
        raise UserError(f"train.{asked[0]}: got true, but {type(module).__name__} names no blocks")
    blocks = module.compute_blocks()
    if train.compile:
        if train.engine == "deepspeed" and train.zero_stage == 3:
            raise UserError(
                "train.compile: got true, expected false with train.zero_stage=3, "
                "whose weights come and go while a block runs"
            )
        require_compiler(device)
        compile_blocks(blocks)
    if train.checkpoint_activations:
        checkpoint_blocks(blocks)


def _turn_pictures(module: nn.Module) -> None:
    """Lay the pictures inside U-Nets out with their channels last.

    Not the weights: engines hold them in flat buffers, of which checkpoints store ranges in the
    order of the names' shapes. A convolution turns its own for each use, which costs little.
    """
    nets = [part for part in module.modules() if isinstance(part, UNet)]
    if not nets:
        raise UserError(f"train.channels_last: got true, but {type(module).__name__} has no U-Net")
    for net in nets:
        net.channels_last = True


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Keep no activations inside the blocks; the backward pass runs each of them once more."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        # A backward pass runs outside of what a forward pass chose for other people's modules, and
        # checkpoint() brings precision and random numbers back, but not which kernels may be used.
        return nullcontext(), sdpa_kernel(_allowed_kernels())

    for block in blocks:
        _replace_forward(
            block, partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
        )


def _allowed_kernels() -> list[SDPBackend]:
    """Those that attention may use here and now; each keeps other tensors for its backward pass."""
    return [kernel for kernel, is_allowed in _KERNELS.items() if is_allowed()]


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Compile the forward and backward passes of each block at its first use."""
    config: Any = torch._dynamo.config
    # Blocks of one class share their code, for which only so many forms are compiled.
    config.recompile_limit = max(config.recompile_limit, _FORMS * len(blocks))
    config.accumulated_recompile_limit = max(
        config.accumulated_recompile_limit, _FORMS * len(blocks)
    )
    for block in blocks:
        _replace_forward(block, torch.compile(block.forward, backend=backend))


def require_compiler(device: torch.device) -> None:
    """Compile something small.

    Raises:
        UserError: it cannot be done; in one line, why.
    """
    try:
        torch.compile(torch.nn.functional.silu)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, of triton, of python's headers
        raise UserError(
            f"train.compile: nothing can be compiled here ({one_line(error)[:200]}); "
            "`unclip doctor` tells what is missing, and train.compile=false does without"
        ) from error


def _replace_forward(block: nn.Module, forward: Callable[..., Any]) -> None:
    block.forward = forward
