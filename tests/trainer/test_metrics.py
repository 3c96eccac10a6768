"""TensorBoard shows what metrics.jsonl holds; its own reader is the judge."""

import shutil
import threading
from pathlib import Path

import pytest
import toy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from base.errors import Stopped
from trainer.loop import train
from trainer.metrics import read_metrics

CURVES = {
    *("loss", "loss_t0", "loss_t1", "loss_t2", "loss_t3", "lr", "grad_norm", "ema_decay"),
    *(
        "samples_per_second",
        "waited",
        "stalled",
        "skipped",
        "overflowed",
        "flops",
        "tflops",
        "memory",
    ),
}


def assert_tensorboard_agrees(run: Path) -> None:
    shown = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()
    lines = read_metrics(run)
    assert set(shown.Tags()["scalars"]) == CURVES
    for name in CURVES:
        expected = [(line["samples"], line[name]) for line in lines if line.get(name) is not None]
        curve = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in curve] == [step for step, _ in expected], name
        values = [value for _, value in expected]
        assert [value for _, value in curve] == pytest.approx(values, rel=1e-6), name


def test_a_whole_run(dataset: Path, tmp_path: Path) -> None:
    train(toy.toy_config(dataset, tmp_path / "run"))
    assert len(read_metrics(tmp_path / "run")) == 4
    assert_tensorboard_agrees(tmp_path / "run")
    assert not [t for t in threading.enumerate() if "Writer" in type(t).__name__]


def test_sessions_join_into_one_curve(dataset: Path, tmp_path: Path) -> None:
    """Also of one second: a process's files have a number that sorts as text, 10 before 9."""
    uid = event_file_writer._global_uid
    while (uid.get() + 3) % 10:  # the three sessions have 8, 9 and 10, or 18, 19 and 20
        pass
    config = toy.toy_config(dataset, tmp_path / "run", objective={"stop_at": [20, 44]})
    for _ in "ab":
        with pytest.raises(Stopped):
            train(config)
    train(config)
    assert_tensorboard_agrees(tmp_path / "run")


def test_steps_taken_again_are_shown_once(dataset: Path, tmp_path: Path) -> None:
    """The last checkpoint is lost, the run goes on from the one before; then all are lost."""
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run))
    last = run / "checkpoints/000000000096/slices/rank_00000.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    assert train(toy.toy_config(dataset, run)).resumed_from == 48
    assert_tensorboard_agrees(run)
    shutil.rmtree(run / "checkpoints")
    (run / "latest").unlink()
    assert train(toy.toy_config(dataset, run)).resumed_from is None
    assert_tensorboard_agrees(run)
    assert len(list((run / "tensorboard").iterdir())) == 3  # one a session
