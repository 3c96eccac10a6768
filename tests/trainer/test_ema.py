"""Averages: their recurrences, over resume and skipped steps, and those made after the run."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
import toy
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from base.errors import Stopped, UserError
from trainer.checkpoint.export import export, read_weights
from trainer.checkpoint.manifest import SEAL, sealed
from trainer.checkpoint.read import resolve_checkpoint
from trainer.checkpoint.snapshots import read_snapshots
from trainer.checkpoint.synthesis import synthesise
from trainer.cli import app
from trainer.config import EmaConfig, OptimConfig
from trainer.ema.average import Ema
from trainer.ema.posthoc import LARGEST_ERROR, PostHoc, Weighting
from trainer.ema.profiles import Power, gamma_of, profiles_of
from trainer.engine.base import Setup
from trainer.engine.local import LocalEngine
from trainer.loop import build_parts, train

CPU = torch.device("cpu")


def test_exponents_are_the_paper_s() -> None:
    """Section 3.1 gives γ = 16.97 and 6.94 for 0.05 and 0.10; then eq. 3 over the whole range."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)
    for std in np.arange(1, 289) / 1000:
        gamma = gamma_of(std)
        assert gamma > 0
        found = math.sqrt(gamma + 1) / (gamma + 2) / math.sqrt(gamma + 3)
        assert found == pytest.approx(std, rel=1e-12)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.28])
def test_a_power_function_s_recurrence_weighs_the_past_as_it_should(std: float) -> None:
    """After t updates the i-th weighs (i^(γ+1) - (i-1)^(γ+1)) / t^(γ+1); the start nothing."""
    power, times = Power(std), 1 + np.arange(40)
    weights = np.zeros(41)
    weights[0] = 1  # of what was there before the first update
    for update in range(40):
        decay = power.decay(update)
        weights *= decay
        weights[update + 1] += 1 - decay
    expected = np.diff(np.r_[0, times / 40] ** (power.gamma + 1))
    assert weights[0] == 0
    assert weights[1:] == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert sum(weights) == pytest.approx(1)


def test_averages_are_the_plain_recurrences() -> None:
    """Recomputed in float64 from the weights that each step left behind."""
    torch.manual_seed(0)
    module = nn.Linear(7, 3)
    engine = LocalEngine(module, OptimConfig(), Setup("fp32", 0, lambda world: 1), CPU)
    config = EmaConfig(decay=0.9, warmup=10, powers=(0.05, 0.2))
    ema, decays = Ema(engine.flats(), config), profiles_of(config)
    assert ema.kinds == tuple(decays) == ("ema", "ema_0.050", "ema_0.200")
    plain = {kind: [flat.master.double().clone() for flat in engine.flats()] for kind in decays}
    for step in range(30):
        engine.backward(module(torch.randn(4, 7)).square().sum())
        engine.step(1e-2, torch.zeros(1))
        ema.update(step)
        assert decays["ema"](step) == min(0.9, (1 + step) / (10 + step))
        for kind, averages in plain.items():
            for average, flat in zip(averages, engine.flats(), strict=True):
                average.lerp_(flat.master.double(), 1 - decays[kind](step))
    for kind, averages in plain.items():
        for average, shadow in zip(averages, ema.shadows(kind), strict=True):
            assert torch.allclose(average, shadow.double(), rtol=0, atol=1e-6)
            assert shadow.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"powers": [0.3]}, r"ema\.powers\.0: got 0\.3, expected a value <= 0\.288"),
        ({"powers": [0.0501]}, "powers: got 0.0501, expected three decimals, each value once"),
        ({"powers": [0.1, 0.1]}, "powers: got 0.1, expected three decimals, each value once"),
        ({"snapshot_every": 24}, "snapshot_every: snapshots are of `powers`, and there are none"),
    ],
)
def test_values_that_cannot_be(
    dataset: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        toy.toy_config(dataset, tmp_path / "run", ema=values)


def test_a_profile_may_be_dropped_and_none_begun_in_the_middle(
    dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run, ema={"powers": [0.05, 0.1]}, train={"samples": 48}))
    with pytest.raises(UserError, match=r"ema_0\.200 was not averaged .* ema, ema_0\.050, ema_0"):
        train(toy.toy_config(dataset, run, ema={"powers": [0.05, 0.2]}))
    train(toy.toy_config(dataset, run, ema={"powers": [0.1]}))
    whole = tmp_path / "whole"
    train(toy.toy_config(dataset, whole, ema={"powers": [0.1]}))
    ours, theirs = (read_weights(folder, "ema_0.100") for folder in (run, whole))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    with pytest.raises(UserError, match=r"ema_0\.050 was not averaged"):
        train(toy.toy_config(dataset, run, ema={"powers": [0.05]}, train={"samples": 120}))


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 steps on the toy, with 10 snapshots of two averages; one step is skipped."""
    toy.register()
    out = tmp_path_factory.mktemp("ema") / "run"
    train(long_config(dataset, out, powers=[0.05, 0.1], snapshot_every=120))
    return out


def long_config(dataset: Path, out: Path, **ema: Any) -> Any:
    how = {"samples": 1200, "checkpoint_every": 360}
    return toy.toy_config(dataset, out, objective={"poison": [250]}, train=how, ema=ema)


def snapshots_of(run: Path) -> list[int]:
    return [snapshot.manifest.samples for snapshot in read_snapshots(run)]


def test_snapshots_hold_the_power_functions_alone(run: Path, dataset: Path) -> None:
    found = read_snapshots(run)
    assert snapshots_of(run) == list(range(120, 1201, 120))
    assert {snapshot.manifest.kinds for snapshot in found} == {("ema_0.050", "ema_0.100")}
    assert [snapshot.state().ema_updates for snapshot in found] == [10, 20, *range(29, 100, 10)]
    last = load_file(found[-1].folder / "slices/rank_00000.safetensors")
    stored = load_file(resolve_checkpoint(run).folder / "slices/rank_00000.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in last.items())
    assert "fixed/scale" in last
    assert not any(name.startswith(("master", "exp", "ema/")) for name in last)


def test_snapshots_of_sessions_are_those_of_one(dataset: Path, tmp_path: Path) -> None:
    """Stopped twice, once beyond a snapshot; and the end has one though it is no multiple."""
    sections = {"ema": {**toy.SNAPSHOTS, "snapshot_every": 36}, "train": {"checkpoint_every": 960}}
    train(toy.toy_config(dataset, tmp_path / "whole", **sections))
    config = toy.toy_config(
        dataset, tmp_path / "parts", objective={"stop_at": [40, 62]}, **sections
    )
    for _ in "ab":
        with pytest.raises(Stopped):
            train(config)
    train(config)
    assert snapshots_of(tmp_path / "parts") == snapshots_of(tmp_path / "whole") == [36, 72, 96]
    for one, other in zip(
        read_snapshots(tmp_path / "parts"), read_snapshots(tmp_path / "whole"), strict=True
    ):
        slices = "slices/rank_00000.safetensors"
        assert one.manifest.files[slices] == other.manifest.files[slices]


def test_snapshots_beyond_the_checkpoint_and_half_ones_are_dropped_on_resume(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    how = {"samples": 96, "checkpoint_every": 48}
    config = toy.toy_config(dataset, out, ema=toy.SNAPSHOTS, train=how)
    train(config)
    assert snapshots_of(out) == [24, 48, 72, 96]
    (out / "checkpoints/000000000096/trainer.json").unlink()
    foreign = out / "snapshots/000000000072/trainer.json"
    foreign.write_text(foreign.read_text() + " ")
    (out / "snapshots/.saving-000000000096/slices").mkdir(parents=True)
    assert train(config).resumed_from == 48
    assert snapshots_of(out) == [24, 48, 72, 96]  # all of them whole again
    assert not list((out / "snapshots").glob(".*"))
    shutil.rmtree(out / "checkpoints")
    (out / "latest").unlink()
    train(toy.toy_config(dataset, out, ema=toy.SNAPSHOTS, train={"samples": 24}))
    assert snapshots_of(out) == [24]


def test_killed_anywhere_snapshots_are_whole_and_those_of_an_undisturbed_run(
    dataset: Path, tmp_path: Path
) -> None:
    """Every 31st moment with a file; every fourth with `make soak`."""
    step = 4 if os.environ.get("UNCLIP_SOAK") else 31
    script = [processes.HERE / "killed.py", dataset, tmp_path, step, 3, 24]
    command, timeout = [sys.executable, *map(str, script)], 400 if step > 4 else 7000
    env = processes.environment()
    subprocess.run(command, cwd=processes.ROOT, env=env, check=True, timeout=timeout)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report) > 9
    for entry in report:
        assert all(entry["between"]["snapshots"].values()), entry
        assert entry["finished"], entry
        assert entry["equal"], entry
        assert entry["same"], entry
        assert list(entry["snapshots"]) == ["000000000024", "000000000048", "000000000060"]
    seen = {name for entry in report for name in entry["between"]["snapshots"]}
    assert {"000000000024", "000000000048"} <= seen


def test_post_hoc_averages_of_a_constant_and_a_line_are_in_closed_form() -> None:
    """Of weights θ(τ) = c, and θ(τ) = τ whose average after t updates is t (γ + 1) / (γ + 2)."""
    stored = [Weighting(t, gamma_of(std)) for t in range(100, 1001, 100) for std in (0.05, 0.1)]
    posthoc = PostHoc(stored)
    for std in (0.05, 0.06, 0.07, 0.08, 0.1, 0.12):
        fit = posthoc.fit(Weighting(1000, gamma_of(std)))
        line = [t * (gamma + 1) / (gamma + 2) for t, gamma in stored]
        gamma = gamma_of(std)
        assert sum(fit.coefficients) == pytest.approx(1, abs=1e-9)
        assert np.dot(fit.coefficients, line) == pytest.approx(
            1000 * (gamma + 1) / (gamma + 2), rel=2e-3
        )


def test_a_stored_average_is_its_own_fit() -> None:
    stored = [Weighting(t, gamma_of(std)) for t in (300, 600, 900) for std in (0.05, 0.1)]
    fit = PostHoc(stored).fit(stored[-1])
    assert fit.error < 1e-5
    assert fit.coefficients == pytest.approx([0, 0, 0, 0, 0, 1], abs=1e-5)


def test_fit_errors_are_those_of_the_sum_of_weightings() -> None:
    """By numerical integration of the squared difference."""
    stored = [Weighting(t, gamma_of(std)) for t in (40, 70, 100) for std in (0.05, 0.1)]
    tau = (np.arange(200_000) + 0.5) / 2000

    def weighting(of: Weighting) -> Any:
        inside = (of.gamma + 1) * (tau / of.updates) ** of.gamma / of.updates
        return np.where(tau < of.updates, inside, 0)

    posthoc = PostHoc(stored)
    for std in (0.03, 0.07, 0.15):
        wanted = Weighting(100, gamma_of(std))
        fit = posthoc.fit(wanted)
        made = sum(c * weighting(of) for c, of in zip(fit.coefficients, stored, strict=True))
        square = np.square(made - weighting(wanted)).sum() / np.square(weighting(wanted)).sum()
        assert fit.error == pytest.approx(math.sqrt(square), rel=1e-2)
    for low, high in posthoc.reachable(100):
        for std in (low, high):
            assert posthoc.fit(Weighting(100, gamma_of(std))).error <= LARGEST_ERROR


@pytest.mark.parametrize("std", [0.06, 0.07, 0.085])
def test_what_is_made_afterwards_is_what_would_have_been_tracked(
    run: Path, dataset: Path, tmp_path: Path, std: float
) -> None:
    """Against a run of the same seed that tracked it.

    Half a hundredth of the way from the average to the weights themselves (measured: 0.17 % at
    most), and far nearer than the averages that it is made of.
    """
    tracked = tmp_path / "tracked"
    train(long_config(dataset, tracked, powers=[std]))
    made = synthesise(run, std, tmp_path / "made.safetensors")
    found, expected = load_file(made.out), read_weights(tracked, f"ema_{std:.3f}")
    begun = build_parts(long_config(dataset, tracked), CPU).model.state_dict()
    raw, same = read_weights(run, "raw"), read_weights(tracked, "raw")
    assert all(torch.equal(raw[name], value) for name, value in same.items())
    assert torch.equal(found["scale"], expected["scale"])
    off, way = distance(found, expected), distance(raw, expected)
    assert 0 < off < 0.005 * way
    assert way < distance(raw, begun)
    for stored in ("ema_0.050", "ema_0.100"):
        assert off < 0.05 * distance(read_weights(run, stored), expected)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert set(one) == set(other)
    return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in one))


def test_averages_that_snapshots_cannot_give(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"

    def refused(match: str, folder: Path = run, std: float = 0.07, **more: Any) -> None:
        with pytest.raises(UserError, match=match):
            synthesise(folder, std, out, **more)
        assert not out.exists()

    for std in (0.0, -0.1, 0.3, math.nan):
        refused(f"--std: got {std}, expected a value > 0 and <= 0.288", std=std)
    refused(
        r"got 0\.005, whose average 10 snapshots give with an error of \d+%, expected", std=0.005
    )
    refused(r"no snapshot at 100 samples; there are: 120, 240, 360", samples=100)
    refused("no snapshots; train with ema.powers and ema.snapshot_every", tmp_path)
    damaged = shutil.copytree(run, tmp_path / "damaged")
    path = damaged / "snapshots/000000000240/slices/rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    refused("000000000240/slices/rank_00000.safetensors: its bytes have changed", damaged)
    assert synthesise(damaged, 0.07, tmp_path / "y", samples=120).averages == 2
    shutil.copy(run / "snapshots/000000000240/slices/rank_00000.safetensors", path)
    (damaged / "snapshots/000000000120/manifest.json").unlink()
    refused("000000000120/manifest.json", damaged)
    mixed = shutil.copytree(run, tmp_path / "mixed")
    change_fact(mixed / "snapshots/000000000360", "seed", 9)
    refused("000000000360: seed differs from that of 000000001200", mixed)


def change_fact(folder: Path, name: str, value: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["facts"][name] = value
    del manifest[SEAL]
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


def test_the_command_tells_how_near_it_came(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    call = ["checkpoint", "ema", str(run), "--std", "0.07", "--out", str(out)]
    done = CliRunner().invoke(app, [*call, "--json"], catch_exceptions=False)
    made = json.loads(done.stdout)
    assert (made["averages"], made["samples"], made["bytes"]) == (20, 1200, out.stat().st_size)
    assert 0 < made["error"] < LARGEST_ERROR
    with pytest.raises(UserError, match="is there already; choose another file, or --replace it"):
        CliRunner().invoke(app, call, catch_exceptions=False)
    call[2] = str(tmp_path / "absent")
    with pytest.raises(UserError, match="absent: no such RUN folder"):
        CliRunner().invoke(app, call, catch_exceptions=False)
    call[2] = str(run)
    done = CliRunner().invoke(app, [*call, "--replace"], catch_exceptions=False)
    assert f"20 averages up to 1200 samples, error {made['error']:.2%}" in done.stdout


def test_any_stored_average_is_exported_and_nothing_is_overwritten(
    run: Path, tmp_path: Path
) -> None:
    stored = load_file(resolve_checkpoint(run).folder / "slices/rank_00000.safetensors")
    out = tmp_path / "w.safetensors"
    for weights in ("ema_0.050", "ema_0.100", "ema", "raw"):
        exported = load_file(export(run, weights, out, replace=out.exists()))
        kind = "master" if weights == "raw" else weights
        for name, value in read_weights(run, weights).items():
            assert torch.equal(exported[name], value)
            if name != "scale":
                assert torch.equal(value.reshape(-1), stored[f"{kind}/{name}"])
    before = out.read_bytes()
    with pytest.raises(UserError, match=r"w\.safetensors: is there already"):
        export(run, "ema", out)
    assert out.read_bytes() == before
    with pytest.raises(UserError, match=r"got 'exp_avg', expected one of raw, ema, ema_0\.050"):
        export(run, "exp_avg", tmp_path / "x")


def test_writing_weights_holds_little_more_than_the_largest_tensor(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    """At most 1.5 times its bytes: 16 MiB of 38 in all, in files of 228 and 76."""
    width, large = 1 << 19, tmp_path / "large"
    how = {"samples": 2, "batch": 2, "micro_batch": 2}
    ema = {"powers": [0.05, 0.1], "snapshot_every": 2}
    train(toy.toy_config(dataset, large, model={"width": width}, train=how, ema=ema))
    done = subprocess.run(
        [sys.executable, str(processes.HERE / "exporting.py"), *map(str, (run, large, tmp_path))],
        cwd=processes.ROOT,
        # Freed memory goes back at once, so that one way of writing does not hide another's.
        env=processes.environment(MALLOC_MMAP_THRESHOLD_="1000000"),
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    largest = 4 * toy.DIM * width
    for way, peak in json.loads(done.stdout).items():
        assert largest < peak < 1.5 * largest, way
        assert (tmp_path / way).stat().st_size > 2 * largest
