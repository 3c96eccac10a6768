"""The optimizer's state in the host's memory: the same curve, checkpoints that others read."""

from pathlib import Path
from typing import Any

import pytest
import toy
from test_resume import assert_equal_runs

from base.errors import Stopped, UserError
from trainer.checkpoint.export import read_weights
from trainer.loop import train
from trainer.metrics import read_metrics

OFFLOAD: dict[str, Any] = {"engine": "deepspeed", "offload": "optimizer"}
every_stage = pytest.mark.parametrize("zero", [1, 2, 3])


def run(dataset: Path, out: Path, **how: Any) -> list[tuple[float, float]]:
    train(toy.toy_config(dataset, out, train=how))
    return [(line["loss"], line["grad_norm"]) for line in read_metrics(out)]


@every_stage
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("bf16", 2e-2)])
def test_the_curve_is_that_of_the_local_engine(
    deepspeed_ready: None,
    dataset: Path,
    tmp_path: Path,
    zero: int,
    precision: str,
    tolerance: float,
) -> None:
    """With accumulation, clipping, weight decay and warm-up all at work."""
    expected = run(dataset, tmp_path / "local", precision=precision)
    found = run(dataset, tmp_path / "run", **OFFLOAD, zero_stage=zero, precision=precision)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    weights = read_weights(tmp_path / "local")
    for name, value in read_weights(tmp_path / "run").items():
        assert (value - weights[name]).abs().max() < 10 * tolerance, name


@every_stage
def test_an_interrupted_run_is_the_same(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, zero: int
) -> None:
    """Bit for bit; and a run in the device's memory goes on with it."""
    how = {**OFFLOAD, "zero_stage": zero}
    train(toy.toy_config(dataset, tmp_path / "whole", train=how))
    config = toy.toy_config(dataset, tmp_path / "parts", objective={"stop_at": [44]}, train=how)
    with pytest.raises(Stopped):
        train(config)
    assert train(config).resumed_from == 60
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")
    longer = {"engine": "local", "samples": 120}
    assert train(toy.toy_config(dataset, tmp_path / "whole", train=longer)).resumed_from == 96


@every_stage
def test_a_bad_loss_skips_its_step_and_nothing_else(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, zero: int
) -> None:
    how = {**OFFLOAD, "zero_stage": zero}
    config = toy.toy_config(dataset, tmp_path / "run", objective={"poison": [30]}, train=how)
    result = train(config)
    assert (result.steps, result.skipped) == (7, 12)
    assert all(value.isfinite().all() for value in read_weights(tmp_path / "run").values())


@pytest.mark.parametrize("how", [{"engine": "local"}, {"engine": "deepspeed", "zero_stage": 0}])
def test_without_partitions_it_is_refused(
    dataset: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="offload: got optimizer, expected none without"):
        toy.toy_config(dataset, tmp_path, train={**how, "offload": "optimizer"})
