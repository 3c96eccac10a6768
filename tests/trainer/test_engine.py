"""Engines in one process: equal curves, gradients whatever the micro-batches, skipped steps."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from torch import nn

from base.errors import UserError
from trainer.checkpoint.export import read_weights
from trainer.config import LoopConfig, OptimConfig
from trainer.engine import processes
from trainer.engine.base import Setup
from trainer.engine.local import LocalEngine
from trainer.engine.open import micro_batches, open_engine
from trainer.loop import build_parts, train
from trainer.metrics import read_metrics
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.optim import learning_rate, split_by_decay

CPU = torch.device("cpu")


def run(dataset: Path, out: Path, **sections: Any) -> list[tuple[float, float]]:
    train(toy.toy_config(dataset, out, **sections))
    return [(line["loss"], line["grad_norm"]) for line in read_metrics(out)]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("bf16", 2e-2)])
def test_deepspeed_gives_the_curve_of_the_local_engine(
    deepspeed_ready: None,
    dataset: Path,
    tmp_path: Path,
    zero: int,
    precision: str,
    tolerance: float,
) -> None:
    """With accumulation, clipping, weight decay and warm-up all at work."""
    how: dict[str, Any] = {"precision": precision}
    local = run(dataset, tmp_path / "local", train=how)
    how = {**how, "engine": "deepspeed", "zero_stage": zero}
    shared = run(dataset, tmp_path / "deepspeed", train=how)
    assert len(local) == 4
    for ours, theirs in zip(shared, local, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    weights = read_weights(tmp_path / "local")
    for name, value in read_weights(tmp_path / "deepspeed").items():
        assert (value - weights[name]).abs().max() < 10 * tolerance, name


@pytest.mark.parametrize("micro", [1, 3, 12, None])
def test_micro_batches_do_not_change_the_curve(
    dataset: Path, tmp_path: Path, micro: int | None
) -> None:
    expected = run(dataset, tmp_path / "five", objective={"pictures": True})
    how = {"micro_batch": micro}
    found = run(dataset, tmp_path / "other", train=how, objective={"pictures": True})
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-6)


def test_workers_do_not_change_a_bit(dataset: Path, tmp_path: Path) -> None:
    pictures = {"pictures": True}
    expected = run(dataset, tmp_path / "thread", objective=pictures)
    assert run(dataset, tmp_path / "two", objective=pictures, train={"workers": 2}) == expected


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_an_odd_number_of_parameters(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, zero: int
) -> None:
    """DeepSpeed 0.19 refuses a bucket of odd size."""
    odd = {"width": 25}
    elements = sum(p.numel() for p in toy.ToyModel(toy.ToyModelConfig(**odd)).parameters())
    assert elements % 2 == 1
    expected = run(dataset, tmp_path / "local", model=odd)
    how = {"engine": "deepspeed", "zero_stage": zero}
    found = run(dataset, tmp_path / "deepspeed", model=odd, train=how)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-6)


def test_local_engine_is_plain_adamw_with_clipping() -> None:
    """Against torch's own optimizer, clipping and one big batch, step by step."""
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 3)) for _ in "ab")
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(lr=1e-2, weight_decay=0.1, clip_grad=0.5, betas=(0.9, 0.96), eps=1e-6)
    engine = LocalEngine(ours, config, Setup("fp32", 0, lambda world: 3), CPU)
    decayed = [p for p in theirs.parameters() if p.ndim >= 2]
    others = [p for p in theirs.parameters() if p.ndim < 2]
    plain = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.96),
        eps=1e-6,
    )
    for _ in range(6):
        x, y = torch.randn(12, 5), torch.randn(12, 3)
        plain.zero_grad()
        loss = 9 * (theirs(x) - y).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        plain.step()
        total = torch.zeros(())
        for part, target in zip(x.split(4), y.split(4), strict=True):
            own = 9 * (ours(part) - target).square().sum() / 36
            engine.backward(own)
            total += own.detach()
        stats = engine.step(1e-2, total.reshape(1))
        assert stats.applied
        assert stats.sums[0] == pytest.approx(loss.item(), rel=1e-5)
        assert stats.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        for own_p, their_p in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(own_p, their_p, rtol=1e-5, atol=1e-6)


def test_what_decays() -> None:
    """Matrices and tables, not vectors; patterns spare some, and one that spares none is a typo."""

    def names(*no_decay: str) -> list[set[str]]:
        model = DiffusionPrior(PriorConfig(4, 4, 3, layers=1, heads=1, head_width=4))
        return [{name for name, _ in group.named} for group in split_by_decay(model, no_decay)]

    decayed, others = names()
    assert {"positions", "final_token", "image_in.weight"} <= decayed
    assert {"image_in.bias", "norm_out.weight", "norm_out.bias"} <= others
    spared = {"positions", "final_token"}
    assert names("pos*", "*token") == [decayed - spared, others | spared]
    with pytest.raises(UserError, match=r"optim\.no_decay: got '\*\.bias', which matches no"):
        names("*.bias")


@pytest.mark.parametrize(
    "how", [{"engine": "local"}, {"engine": "deepspeed"}], ids=lambda how: how["engine"]
)
def test_what_is_spared_keeps_its_size(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    """At a rate at which decay alone is seen."""
    optim = {"lr": 1e-6, "weight_decay": 1e4, "no_decay": ["net.0.*"], "warmup": 0}
    config = toy.toy_config(dataset, tmp_path / "run", optim=optim, train={**how, "samples": 12})
    before = build_parts(config, CPU).model.state_dict()
    train(config)
    after = read_weights(tmp_path / "run", "raw")
    shrunk = {name: float(value.norm() / before[name].norm()) for name, value in after.items()}
    assert shrunk["net.3.weight"] == pytest.approx(0.99, abs=1e-3)
    assert [shrunk[f"net.{n}"] for n in ("0.weight", "3.bias")] == pytest.approx([1, 1], abs=1e-3)


def test_bf16_keeps_what_bf16_cannot() -> None:
    """Steps far below bf16's resolution add up in the masters."""
    module = nn.Linear(4, 4, bias=False)
    nn.init.constant_(module.weight, 1.0)
    engine = LocalEngine(
        module, OptimConfig(weight_decay=0.0), Setup("bf16", 0, lambda world: 1), CPU
    )
    assert module.weight.dtype == torch.bfloat16
    for _ in range(50):
        engine.backward(module(torch.ones(2, 4, dtype=torch.bfloat16)).float().sum())
        engine.step(1e-4, torch.zeros(1))
    (flat,) = engine.flats()
    assert torch.allclose(flat.master, torch.full((16,), 1 - 50 * 1e-4), atol=1e-5)
    assert torch.equal(module.weight, flat.master.view(4, 4).bfloat16())


@pytest.mark.parametrize(
    ("engine", "zero"), [("local", 0), *(("deepspeed", zero) for zero in range(4))]
)
def test_a_bad_loss_skips_its_step_and_nothing_else(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, engine: str, zero: int
) -> None:
    """Position 30 lies in the third batch: weights, averages and counters go on without it."""
    config = toy.toy_config(
        dataset,
        tmp_path / "run",
        objective={"poison": [30]},
        train={"engine": engine, "zero_stage": zero, "log_every": 12},
    )
    result = train(config)
    assert (result.samples, result.steps, result.skipped) == (96, 7, 12)
    lines = read_metrics(tmp_path / "run")
    assert [line["loss"] is None for line in lines] == [n == 2 for n in range(8)]
    assert [line["skipped"] for line in lines] == [0, 0] + [12] * 6
    assert all(value.isfinite().all() for value in read_weights(tmp_path / "run").values())


def test_learning_rate_warms_up_and_falls() -> None:
    config = OptimConfig(lr=1.0, warmup=100, schedule="cosine", final=0.1)
    rates = [learning_rate(config, samples, 1100) for samples in (10, 50, 100, 600, 1100, 2000)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 0.55, 0.1, 0.1])
    flat = OptimConfig(lr=1.0)
    assert [learning_rate(flat, n, 10) for n in (0, 5, 100)] == [1.0, 1.0, 1.0]


def test_number_of_micro_batches_suits_every_rank() -> None:
    def count(batch: int, micro: int | None, ranks: int) -> int:
        return micro_batches(LoopConfig(samples=1, batch=batch, micro_batch=micro), ranks)

    assert [count(12, 5, 1), count(12, None, 1), count(12, 5, 2), count(7, 1, 2)] == [3, 1, 2, 3]
    for batch in range(3, 40):
        for micro in range(1, batch):
            assert 1 <= count(batch, micro, 3) <= batch // 3


def test_what_does_not_fit_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy.toy_config(dataset, tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="use deepspeed"):
        open_engine(nn.Linear(2, 2), config.optim, config.train, CPU)
    monkeypatch.setenv("WORLD_SIZE", "20")
    with pytest.raises(UserError, match=r"train\.batch: got 12, expected >= 20"):
        open_engine(nn.Linear(2, 2), config.optim, config.train, CPU)


def test_processes_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone; in a batch script, which is alone too; under srun; under torchrun."""

    def seen() -> tuple[int, int]:
        return processes.environment_rank(), processes.environment_world_size()

    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    assert seen() == (0, 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    before = dict(os.environ)
    with processes.group_environment():
        assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert dict(os.environ) == before
    for name, value in {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert seen() == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert seen() == (3, 8)
    with (
        pytest.raises(UserError, match="one of 8 processes: MASTER_ADDR"),
        processes.group_environment(),
    ):
        pass
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert seen() == (1, 2)


def test_seeds_give_different_weights_and_orders(dataset: Path, tmp_path: Path) -> None:
    curves = [run(dataset, tmp_path / str(seed), seed=seed) for seed in (3, 4)]
    assert not np.allclose(curves[0], curves[1], rtol=1e-3)
