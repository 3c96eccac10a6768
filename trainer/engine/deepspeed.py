"""The DeepSpeed engine: ZeRO 0 to 3, on GPUs with nccl and on CPUs with gloo."""

from __future__ import annotations

import importlib
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from base.errors import UserError
from trainer.config import OptimConfig
from trainer.engine.base import Flat, Reader, Setup, StepStats, fill, owned_part
from trainer.engine.partitions import Partition, find_partition
from trainer.engine.processes import TIMEOUT, environment_rank, group_environment, is_joined
from trainer.engine.step import guard, not_finite, read_stats
from trainer.optim import make_adamw, prepare_moments, set_rate, split_by_decay

T = TypeVar("T")

_LARGEST_BUCKET = 500_000_000  # elements; DeepSpeed's own default


class DeepSpeedEngine:
    """Runs a module under DeepSpeed with our fused AdamW inside."""

    def __init__(
        self, module: nn.Module, optim: OptimConfig, setup: Setup, device: torch.device
    ) -> None:
        deepspeed = _import_quietly(device)
        with group_environment():
            self._open(deepspeed, module, optim, setup, device)

    def _open(
        self,
        deepspeed: Any,
        module: nn.Module,
        optim: OptimConfig,
        setup: Setup,
        device: torch.device,
    ) -> None:
        if setup.precision == "fp16" and not deepspeed.get_accelerator().is_fp16_supported():
            raise UserError(
                "train.precision: got fp16, which DeepSpeed does not run on this processor; "
                "use bf16, or train.engine=local"
            )
        _join(deepspeed, device)
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        groups = split_by_decay(module, optim.no_decay)
        self._adamw = make_adamw(
            [(group.decays, [parameter for _, parameter in group.named]) for group in groups], optim
        )
        micro_batches = setup.micro_batches(self.world_size)
        config = _deepspeed_config(module, optim, setup, micro_batches, self.world_size)
        self.module = module
        with redirect_stdout(io.StringIO()):  # notes on memory that no setting turns off
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=_Caller(module), optimizer=self._adamw, config=config
            )
        self._partition: Partition = find_partition(self._optimizer, self._adamw, groups)
        # Without ZeRO and in fp32 DeepSpeed hands the step to our optimizer as it is.
        self._own_step = self._optimizer is self._adamw
        self._norm_is_scaled = setup.zero_stage == 0  # as DeepSpeed tells it
        self._clip = optim.clip_grad
        self.scale = 1.0
        prepare_moments(self._adamw, self._partition.masters())

    def forward(self, compute: Callable[[], T]) -> T:
        """Run `compute` as DeepSpeed's forward pass, whose hooks the backward pass relies on."""
        result: T = self._engine(compute)
        return result

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar; DeepSpeed averages over ranks, which is undone here."""
        self._engine.backward(loss * (self.world_size * self.scale), scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch

    def step(self, rate: float, sums: Tensor) -> StepStats:
        """Clip, update and clear; a bad gradient changes nothing on any rank."""
        dist.all_reduce(sums)
        set_rate(self._adamw, rate)
        if self._own_step:
            norm = _total_norm(self.module, self.device)
            guard(self._adamw, norm, sums, self._clip)
        else:  # DeepSpeed clips and refuses a bad gradient; a bad loss is ours to refuse
            bad = not_finite(sums).to(self._partition.masters()[0].device)
            self._adamw.found_inf = bad  # type: ignore[attr-defined]
        with self._unscaling():
            self._engine.step()
        if not self._own_step:
            norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self.device)
            norm = norm / (self.scale if self._norm_is_scaled else 1.0)
        return read_stats(norm, sums)

    @contextmanager
    def _unscaling(self) -> Iterator[None]:
        """DeepSpeed divides gradients by its scale, which is ours for as long as it does.

        Its own backward pass would multiply by it, but not without ZeRO; so `backward` does it.
        """
        if self.scale != 1.0:
            self._optimizer.loss_scale = self.scale
        yield
        if self.scale != 1.0:
            self._optimizer.loss_scale = 1.0

    def flats(self) -> list[Flat]:
        """This rank's partitions, or its share of what all ranks hold."""
        held = self._partition.flats()
        if not self._partition.replicated:
            return held
        parts = [owned_part(flat, self.rank, self.world_size) for flat in held]
        return [part for part in parts if part is not None]

    def restore(self, read: Reader, steps: int) -> None:
        """Take masters and moments from `read`, and bring all ranks' weights up to date."""
        prepare_moments(self._adamw, self._partition.masters(), steps)
        fill(self._partition.flats(), read)
        self._partition.publish()

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Remove DeepSpeed's hooks and buffers."""
        self._engine.destroy()


class _Caller(nn.Module):
    """Makes any computation with the model the forward pass of one module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


def _import_quietly(device: torch.device) -> Any:
    """Import DeepSpeed for the device's kind, without its notes on everything it does."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    for name in ("DeepSpeed", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Optimizers import it, and defaults of its modules' functions keep the group that is there.
    importlib.import_module("torch._dynamo")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    return deepspeed


def _join(deepspeed: Any, device: torch.device) -> None:
    """Join the process group, or make one of this process alone."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not (is_joined() and deepspeed.comm.is_initialized()):
        _put_ninja_on_path()
        if device.type == "cpu" and environment_rank() == 0 and not _is_compiled():
            print("DeepSpeed compiles its CPU extension, once: about a minute", file=sys.stderr)
        try:
            with redirect_stdout(io.StringIO()):  # standard output belongs to --json
                deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, verbose=False)
        except RuntimeError as error:
            if "JIT load" not in str(error) and "building extension" not in str(error):
                raise
            raise UserError(
                "train.engine: got 'deepspeed', which cannot compile its CPU operator here; "
                "`unclip doctor` tells what is missing, and 'local' does without"
            ) from error


def _is_compiled() -> bool:
    from torch.utils.cpp_extension import get_default_build_root  # warns, unless it comes quietly

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    return any(Path(root).glob("**/deepspeed_shm_comm.so"))


def _put_ninja_on_path() -> None:
    """DeepSpeed wants ninja on PATH: the one beside python, whether or not that is activated.

    Two versions of ninja take what the other has compiled for stale, and compile it again.
    """
    own = Path(sys.executable).with_name("ninja")
    if own.exists() and shutil.which("ninja") != str(own):
        os.environ["PATH"] = os.pathsep.join([str(own.parent), os.environ.get("PATH", os.defpath)])


def _deepspeed_config(
    module: nn.Module, optim: OptimConfig, setup: Setup, micro_batches: int, world_size: int
) -> dict[str, Any]:
    elements = sum(parameter.numel() for parameter in module.parameters())
    bucket = min(elements + elements % 2, _LARGEST_BUCKET)  # DeepSpeed refuses odd ones
    # Without ZeRO and in fp32 our optimizer clips; DeepSpeed's default would clip at 1.0 before it.
    clips = setup.zero_stage > 0 or setup.precision != "fp32"
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # bookkeeping: the loop counts samples itself
        "gradient_accumulation_steps": micro_batches,
        "train_batch_size": micro_batches * world_size,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": optim.clip_grad if clips else 0.0,
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
        "zero_optimization": {
            "stage": setup.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }
    if setup.offload:
        place = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        config["zero_optimization"]["offload_optimizer"] = place
        config["zero_force_ds_cpu_optimizer"] = False  # ours is as fused, and needs no compiler
    if setup.precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if setup.precision == "fp16":
        config["fp16"] = {"enabled": True, "loss_scale": 1.0}  # the run has a scale of its own
    if setup.precision != "fp32" and setup.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _total_norm(module: nn.Module, device: torch.device) -> Tensor:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=device)
    norms: list[Tensor] = list(torch._foreach_norm(gradients))
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
