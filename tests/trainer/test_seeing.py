"""What is seen of a run: losses over the diffusion's time, speed, and the outlets."""

import json
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import pytest
import torch
import toy

from base.errors import UserError
from trainer.engine.open import open_engine
from trainer.loader.samples import SampleReader
from trainer.loop import build_parts, train
from trainer.metrics import read_metrics
from trainer.outlets.prometheus import Prometheus
from trainer.planning.outline import flops_per_sample, outline
from trainer.planning.peaks import peak_tflops
from trainer.rng import SampleRandom
from trainer.session import Session
from trainer.state import Window

CPU = torch.device("cpu")
SIZE = 12


@pytest.mark.parametrize("cuts", [1, 3])
def test_losses_are_told_apart_by_their_time(dataset: Path, tmp_path: Path, cuts: int) -> None:
    """Sums and counts of each quarter, whatever the micro-batches, as if summed one by one."""
    config = toy.toy_config(dataset, tmp_path / "run", train={"batch": SIZE})
    parts = build_parts(config, CPU)
    engine = open_engine(parts.model, config.optim, config.train, CPU)
    session = Session(config, parts.objective, engine, {}, epoch_size=32)
    positions = np.arange(SIZE)
    reader = SampleReader(config.data, parts.objective.needs, config.seed)
    whole = reader.batch(positions).to(CPU)
    random = SampleRandom(config.seed, whole.positions)
    with torch.no_grad():
        losses = parts.objective.loss(parts.model, whole, random, None, 0)
    expected = [0.0] * 8
    for at, loss in zip(random.uniform("time").tolist(), losses.tolist(), strict=True):
        expected[int(4 * at)] += loss
        expected[4 + int(4 * at)] += 1
    batches = [reader.batch(part) for part in np.array_split(positions, cuts)]
    stats = session.step(batches, 1e-3, [0.0])
    assert stats.sums[2:-1] == pytest.approx(expected, rel=1e-5)
    assert sum(stats.sums[2:6]) / SIZE == pytest.approx(stats.sums[0], rel=1e-5)
    window = Window()
    window.add(SIZE, stats.sums[0], 1.0, [2.0, 0.0, 9.0, 0.0, 4.0, 0.0, 6.0, 0.0])
    assert window.losses_by_time() == [0.5, None, 1.5, None]


def test_speed_and_memory_are_in_every_line(dataset: Path, tmp_path: Path) -> None:
    config = toy.toy_config(dataset, tmp_path / "run", log={"peak_tflops": 1e-3})
    train(config)
    lines = read_metrics(tmp_path / "run")
    flops = flops_per_sample(config, outline(config, "fp32"))
    for line in lines:
        assert line["flops"] == flops
        assert line["tflops"] == pytest.approx(line["samples_per_second"] * flops / 1e12, rel=1e-3)
        assert line["mfu"] == pytest.approx(line["tflops"] / 1e-3)
        assert 50e6 < line["memory"] < 500e9
    assert [line["stalled"] > 0 for line in lines] == [False, False, True, False]
    assert lines[-1]["ema_decay"] == pytest.approx(9 / 18)


def test_devices_are_known_by_their_names() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3", "bf16") == 989.0
    assert peak_tflops("NVIDIA A100-SXM4-40GB", "fp32") == 19.5
    assert peak_tflops("x86_64", "bf16") is None


def test_prometheus_is_asked_while_a_run_goes(
    dataset: Path, tmp_path: Path, command: Callable[..., Popen[str]]
) -> None:
    port = free_port()
    path = toy.write_toy_config(
        tmp_path / "a.yaml",
        dataset,
        tmp_path / "run",
        objective={"delay": 0.02},
        train={"samples": 100_000, "log_every": 12},
        log={"prometheus_port": port},
    )
    process = command("train", path)
    try:
        text = asked(f"http://127.0.0.1:{port}/metrics", b"unclip_loss{")
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        assert float(values['unclip_samples{run="run"}']) >= 12
        assert 0 < float(values['unclip_loss{run="run"}']) < 10
        assert "# TYPE unclip_grad_norm gauge" in text
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 75


def asked(url: str, wanted: bytes) -> str:
    """What the address says, once it says what is wanted."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text: bytes = answer.read()
        except urllib.error.URLError:
            text = b""
        if wanted in text:
            return text.decode()
        time.sleep(0.1)
    raise AssertionError(f"{url}: no {wanted!r}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_other_paths_and_taken_ports_are_refused() -> None:
    outlet = Prometheus('a "run"', 0)
    try:
        outlet.write(3, {"loss": 0.5})
        assert 'unclip_loss{run="a \\"run\\""} 0.5' in asked(
            f"http://127.0.0.1:{outlet.port}/metrics", b"unclip_loss"
        )
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{outlet.port}/")
        with pytest.raises(UserError, match=r"log\.prometheus_port: got \d+: Address already"):
            Prometheus("b", outlet.port)
    finally:
        outlet.close()


def test_a_port_that_is_taken_does_not_end_the_run(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        config = toy.toy_config(dataset, tmp_path / "run", log={"prometheus_port": port})
        assert train(config).samples == 96
    told = capsys.readouterr().err
    assert f"warning: log.prometheus_port: got {port}: Address already in use; the run" in told


def test_wandb_is_named_when_it_is_missing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = toy.toy_config(dataset, tmp_path / "run", log={"wandb": {"project": "unclip"}})
    with pytest.raises(UserError, match=r"log\.wandb: the package wandb is not installed"):
        train(config)


def test_wandb_offline(dataset: Path, tmp_path: Path) -> None:
    """The real package, which leaves its records in the RUN; they are read by its own reader."""
    log = {"wandb": {"project": "unclip", "mode": "offline"}}
    train(toy.toy_config(dataset, tmp_path / "run", log=log))
    (path,) = (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    records = wandb_records(path)
    (begun,) = (record.run for record in records if record.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.project, config["stage"], config["seed"]) == ("unclip", "toy", 3)
    lines = [
        {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    told = [(line["samples"], line["loss"], line["lr"]) for line in lines]
    assert told == [(m["samples"], m["loss"], m["lr"]) for m in read_metrics(tmp_path / "run")]


def wandb_records(path: Path) -> list[Any]:
    """What W&B has written down."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(path))
    return [Record.FromString(data) for data in iter(store.scan_data, None)]
