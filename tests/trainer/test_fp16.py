"""fp16: the curve of fp32, a loss scale that falls and rises, and survives an interruption."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import toy
from test_resume import assert_equal_runs

from base.errors import Stopped, UserError
from trainer.checkpoint.export import read_weights
from trainer.checkpoint.read import resolve_checkpoint
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.state import LossScale, state_from_json

LARGE = 2.0**30  # the toy's gradients overflow at it, and a few times more as it falls
ENGINES: list[dict[str, Any]] = [
    {"engine": "local"},
    *({"engine": "deepspeed", "zero_stage": zero} for zero in range(4)),
]
every_engine = pytest.mark.parametrize(
    "how", ENGINES, ids=lambda how: "-".join(map(str, how.values()))
)


@pytest.fixture
def fp16_anywhere(deepspeed_ready: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed refuses it on most CPUs, where torch has it all the same."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    monkeypatch.setattr(CPU_Accelerator, "is_fp16_supported", lambda self: True)


def run(dataset: Path, out: Path, **sections: Any) -> list[dict[str, Any]]:
    train(toy.toy_config(dataset, out, **sections))
    return read_metrics(out)


@every_engine
def test_the_curve_is_that_of_fp32(
    fp16_anywhere: None, dataset: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    """With accumulation, clipping, weight decay and warm-up all at work."""
    expected = run(dataset, tmp_path / "fp32")
    found = run(dataset, tmp_path / "fp16", train={**how, "precision": "fp16"})
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["loss"], ours["grad_norm"]) == pytest.approx(
            (theirs["loss"], theirs["grad_norm"]), rel=5e-3
        )
        assert (ours["skipped"], ours["overflowed"]) == (0, 0)
    weights = read_weights(tmp_path / "fp32")
    for name, value in read_weights(tmp_path / "fp16").items():
        assert (value - weights[name]).abs().max() < 2e-2, name
    assert resolve_checkpoint(tmp_path / "fp16").state().loss_scale == LossScale(clean=8)


@every_engine
def test_overflows_lower_the_scale_and_three_sessions_equal_one(
    fp16_anywhere: None,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
) -> None:
    """Stopped while the scale falls and once more after that; all is the same, bit for bit."""
    monkeypatch.setattr("trainer.session.LossScale", partial(LossScale, LARGE))
    sections: dict[str, Any] = {
        "train": {**how, "precision": "fp16", "samples": 360, "log_every": 12}
    }
    lines = run(dataset, tmp_path / "whole", **sections)
    state = resolve_checkpoint(tmp_path / "whole").state()
    lost = state.overflowed // 12
    assert state.loss_scale == LossScale(LARGE / 2**lost, 30 - lost)
    assert 5 <= lost <= 25
    assert (state.steps, state.ema_updates, state.skipped) == (30 - lost, 30 - lost, [])
    assert [line["overflowed"] for line in lines] == [12 * min(n, lost) for n in range(1, 31)]
    assert all((line["loss"] is None) == (n < lost) for n, line in enumerate(lines))
    config = toy.toy_config(
        dataset, tmp_path / "parts", objective={"stop_at": [30, 320]}, **sections
    )
    for _ in "ab":
        with pytest.raises(Stopped):
            train(config)
    train(config)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


@every_engine
def test_a_loss_that_is_not_finite_is_not_the_scale_s_fault(
    fp16_anywhere: None, dataset: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    how = {**how, "precision": "fp16"}
    config = toy.toy_config(dataset, tmp_path / "run", objective={"poison": [30]}, train=how)
    result = train(config)
    assert (result.steps, result.skipped) == (7, 12)
    state = resolve_checkpoint(tmp_path / "run").state()
    assert (state.overflowed, state.loss_scale) == (0, LossScale(clean=7))


def test_the_scale_falls_to_one_and_rises_again() -> None:
    scale = LossScale(4.0)
    values = []
    for _ in range(3):
        scale.update(overflowed=True)
        values.append((scale.value, scale.can_fall))
    assert values == [(2.0, True), (1.0, False), (1.0, False)]
    for _ in range(1999):
        scale.update(overflowed=False)
    assert scale == LossScale(1.0, 1999)
    scale.update(overflowed=True)
    assert scale == LossScale(1.0, 0)
    for _ in range(4000):
        scale.update(overflowed=False)
    assert scale == LossScale(4.0, 0)


def test_a_run_goes_on_in_another_precision(dataset: Path, tmp_path: Path) -> None:
    def go_on(samples: int, precision: str) -> LossScale | None:
        how = {"samples": samples, "precision": precision}
        train(toy.toy_config(dataset, tmp_path / "run", train=how))
        return resolve_checkpoint(tmp_path / "run").state().loss_scale

    assert go_on(24, "fp32") is None
    assert go_on(48, "fp16") == LossScale(clean=2)
    assert go_on(72, "bf16") is None


def test_the_first_checkpoints_tell_no_scale(dataset: Path, tmp_path: Path) -> None:
    train(toy.toy_config(dataset, tmp_path / "run", train={"samples": 12}))
    data = resolve_checkpoint(tmp_path / "run").state().to_json()
    del data["loss_scale"], data["overflowed"]
    state = state_from_json(data, "here")
    assert (state.loss_scale, state.overflowed) == (None, 0)
    with pytest.raises(UserError, match="here: not a record"):
        state_from_json({**data, "loss_scale": {"value": 1.0, "more": 2}}, "here")


def test_deepspeed_refuses_it_where_the_processor_lacks_it(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    monkeypatch.setattr(CPU_Accelerator, "is_fp16_supported", lambda self: False)
    how = {"engine": "deepspeed", "precision": "fp16"}
    with pytest.raises(UserError, match=r"train\.precision: got fp16.*use bf16"):
        train(toy.toy_config(dataset, tmp_path / "run", train=how))
