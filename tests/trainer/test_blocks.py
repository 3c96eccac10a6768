"""Activations recomputed and blocks compiled: the same loss and gradients, less memory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
import toy
from torch import Tensor, nn

from base.errors import UserError
from trainer.config import LoopConfig
from trainer.engine.blocks import apply_plan, checkpoint_blocks, compile_blocks, require_compiler
from trainer.loop import train
from trainer.models.clip import Clip
from trainer.models.decoder import Decoder
from trainer.models.prior import DiffusionPrior
from trainer.models.unet import UNet, UNetConfig
from trainer.models.upsampler import Upsampler
from trainer.stages import load_train_config

CPU = torch.device("cpu")
SOAK = os.environ.get("UNCLIP_SOAK")
MICRO = Path(__file__).resolve().parents[2] / "configs" / "micro"
STEP = torch.tensor([3, 700, 41, 999])
MASK = torch.arange(32) < torch.tensor([[9], [32], [1], [20]])  # of captions, [4, 32]


def clip() -> tuple[Any, tuple[Tensor, ...]]:
    tokens = torch.randint(1, 99, (4, 32)).masked_fill(~MASK, 0)
    tokens[torch.arange(4), MASK.sum(1) - 1] = 49407  # the end, which has the highest id
    return Clip(config_of("clip")), (torch.randn(4, 3, 32, 32), tokens)


def prior() -> tuple[Any, tuple[Tensor, ...]]:
    inputs = (torch.randn(4, 16), STEP, torch.randn(4, 32, 32), MASK, torch.randn(4, 16))
    return DiffusionPrior(config_of("prior")), inputs


def decoder() -> tuple[Any, tuple[Tensor, ...]]:
    keep = torch.tensor([True, False, True, True])
    condition = (torch.randn(4, 16), keep, torch.randn(4, 32, 32), MASK)
    return Decoder(config_of("decoder")), (torch.randn(4, 3, 16, 16), STEP, *condition)


def upsampler() -> tuple[Any, tuple[Tensor, ...]]:
    pictures = torch.randn(2, 4, 3, 16, 16)
    return Upsampler(config_of("up64")), (pictures[0], STEP, pictures[1])


def many_scores() -> tuple[Any, tuple[Tensor, ...]]:
    """Attention over 14 x 14 pixels: more than 2^15 scores, for torch's fused kernel."""
    config = UNetConfig(channels=8, multipliers=(1,), blocks=1, attention_levels=(0,), head_width=8)
    return UNet(config), (torch.randn(4, 3, 14, 14), STEP)


def config_of(name: str) -> Any:
    return load_train_config(MICRO / f"{name}.yaml").model


MODELS = [clip, prior, decoder, upsampler]
every_model = pytest.mark.parametrize("make", MODELS)


class Pass:
    """A forward and a backward pass: loss, gradients, and bytes kept between the two."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(*inputs)
            parts = [out] if isinstance(out, Tensor) else [out.image @ out.text.T]
            loss = sum((part.square().mean() for part in parts), torch.zeros(()))
        self.bytes = sum(kept.values())
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.loss = loss.item()
        trained = [(name, parameter.grad) for name, parameter in model.named_parameters()]
        self.gradients = {name: grad.clone() for name, grad in trained if grad is not None}


def made(make: Callable[[], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    """A model none of whose branches is zero, as they begin."""
    torch.manual_seed(0)
    model, inputs = make()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return model.train(), inputs


def assert_same(ours: Pass, theirs: Pass, tolerance: float) -> None:
    assert ours.loss == pytest.approx(theirs.loss, rel=tolerance)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        scale = float(gradient.abs().max()) + 1e-6
        assert (ours.gradients[name] - gradient).abs().max() < tolerance * scale, name


@pytest.mark.parametrize("make", [*MODELS, many_scores])
def test_recomputed_activations(make: Callable[[], Any]) -> None:
    model, inputs = made(make)
    names = list(model.state_dict())
    plain = Pass(model, inputs)
    checkpoint_blocks(model.compute_blocks())
    recomputed = Pass(model, inputs)
    assert list(model.state_dict()) == names
    assert_same(recomputed, plain, 1e-6)
    assert recomputed.bytes < kept_of(make) * plain.bytes


def kept_of(make: Callable[[], Any]) -> float:
    """The largest share of a pass's memory that is left when blocks are computed again.

    A prior keeps little as it is: its last block works out one token.
    """
    return 0.4 if make is prior else 0.3


@pytest.mark.parametrize("make", MODELS if SOAK else [clip, prior, upsampler])
def test_compiled_blocks(make: Callable[[], Any]) -> None:
    """Traced as they will be compiled, without the minutes that a compiler takes for all."""
    model, inputs = made(make)
    plain = Pass(model, inputs)
    compile_blocks(model.compute_blocks(), backend="aot_eager")
    assert_same(Pass(model, inputs), plain, 1e-5)
    checkpoint_blocks(model.compute_blocks())
    both = Pass(model, inputs)
    assert_same(both, plain, 1e-5)
    assert both.bytes < kept_of(make) * plain.bytes


@pytest.mark.parametrize("make", [decoder, upsampler])
def test_channels_last(make: Callable[[], Any]) -> None:
    """The same numbers, and the layout goes through every block."""
    model, inputs = made(make)
    plain = Pass(model, inputs)
    loop = LoopConfig(samples=1, batch=1, channels_last=True)
    apply_plan(model, loop, CPU)
    seen = []
    for block in model.compute_blocks():
        block.register_forward_hook(lambda block, inputs, out: seen.append(out))
    assert_same(Pass(model, inputs), plain, 1e-5)
    assert seen
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


@pytest.mark.skipif(not SOAK, reason="set UNCLIP_SOAK: takes minutes")
@every_model
def test_what_the_compiler_makes(make: Callable[[], Any]) -> None:
    model, inputs = made(make)
    plain = Pass(model, inputs)
    require_compiler(CPU)
    compile_blocks(model.compute_blocks())
    assert_same(Pass(model, inputs), plain, 1e-4)


@pytest.mark.parametrize("zero", range(4))
def test_deepspeed_recomputes_too(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, zero: int
) -> None:
    """The same losses and norms over steps of three micro-batches, weights partitioned or not."""

    def curve(**how: Any) -> list[float]:
        session = small.session_of(dataset, tmp_path, small.decoder, "cpu", **how)
        steps = [small.take_step(session) for _ in range(3)]
        session.engine.close()
        return [number for stats in steps for number in (stats.sums[0], stats.grad_norm)]

    expected = curve(engine="local")
    found = curve(engine="deepspeed", zero_stage=zero, checkpoint_activations=True)
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_done_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"train\.channels_last: got true, but ToyModel has no U-"):
        train(toy.toy_config(dataset, tmp_path / "run", train={"channels_last": True}))
    for name in ("checkpoint_activations", "compile"):
        with pytest.raises(UserError, match=f"train.{name}: got true, but ToyModel names no"):
            train(toy.toy_config(dataset, tmp_path / "run", train={name: True}))
    model, _ = prior()
    loop = LoopConfig(samples=1, batch=1, zero_stage=3, compile=True)
    with pytest.raises(UserError, match=r"expected false with train\.zero_stage=3"):
        apply_plan(model, loop, CPU)
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler on it
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "nowhere-g++"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"train\.compile: nothing can be compiled here") as caught:
        apply_plan(model, LoopConfig(samples=1, batch=1, engine="local", compile=True), CPU)
    assert "\n" not in str(caught.value)
