"""Which checkpoints stay, in a run and by `unclip checkpoint prune`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from base.errors import UserError
from base.lease import Lease
from trainer.checkpoint.folders import complete_checkpoints, latest_checkpoint
from trainer.checkpoint.read import folder_faults, open_checkpoint
from trainer.checkpoint.retention import Retention
from trainer.cli import app
from trainer.loop import train
from trainer.metrics import read_metrics

RULES = st.builds(
    Retention, st.integers(1, 4), st.none() | st.integers(1, 400), best=st.integers(0, 3)
)
SAVES = st.lists(
    st.tuples(st.integers(1, 1000), st.none() | st.floats(0, 9)), unique_by=lambda save: save[0]
)


@given(RULES, SAVES)
def test_pruning_after_every_save_keeps_what_all_saves_together_would(
    rules: Retention, saves: Sequence[tuple[int, float | None]]
) -> None:
    """The last ones, the best, and the first at or after each multiple of all there ever were."""
    there: dict[int, float | None] = {}
    for samples, loss in sorted(saves):
        there[samples] = loss
        kept = rules.kept(there)
        there = {n: loss for n, loss in there.items() if n in kept}
    order = sorted(samples for samples, _ in saves)
    wanted = set(order[-rules.last :])
    if rules.every is not None:
        for multiple in range(rules.every, 1001, rules.every):
            wanted |= set([n for n in order if n >= multiple][:1])
    ranked = sorted((loss, n) for n, loss in saves if loss is not None)
    wanted |= {n for _, n in ranked[: rules.best]}
    assert set(there) == wanted


def names(run: Path) -> list[int]:
    return [int(path.name) for path in complete_checkpoints(run)]


def test_a_run_keeps_what_its_rules_say(dataset: Path, tmp_path: Path) -> None:
    """With the best by the mean loss since the save before, which its manifest tells."""
    run = tmp_path / "run"
    how = {"checkpoint_every": 12, "log_every": 12}
    train(toy.toy_config(dataset, run, train={**how, "keep": 8}))
    losses = {line["samples"]: line["loss"] for line in read_metrics(run)}
    told = {
        int(path.name): open_checkpoint(path).manifest.loss for path in complete_checkpoints(run)
    }
    assert told == losses
    best = min(losses, key=lambda samples: losses[samples])

    kept = tmp_path / "kept"
    train(toy.toy_config(dataset, kept, train={**how, "keep": 1, "keep_every": 30, "keep_best": 1}))
    assert names(kept) == sorted({36, 60, 96, best})
    assert sorted(path.name for path in (kept / "checkpoints").iterdir()) == [
        f"{samples:012d}" for samples in names(kept)
    ]


def prune(run: Path, *arguments: object) -> Any:
    options = [*map(str, arguments), "--json"]
    result = CliRunner().invoke(
        app, ["checkpoint", "prune", str(run), *options], catch_exceptions=False
    )
    return json.loads(result.stdout)


def test_pruning_by_hand(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run, train={"checkpoint_every": 12, "keep": 8}))
    everything = [f"{12 * n:012d}" for n in range(1, 9)]
    size = sum(path.stat().st_size for path in (run / "checkpoints/000000000012").rglob("*.*"))

    assert prune(run) == {"removed": {}, "kept": everything}  # the run's own rules
    planned = prune(run, "--keep", 2, "--every", 40, "--dry-run")
    assert list(planned["removed"]) == [everything[i] for i in (0, 1, 2, 4, 5)]
    assert planned["removed"]["000000000012"] == size
    assert names(run) == [12 * n for n in range(1, 9)]

    shown = CliRunner().invoke(
        app, ["checkpoint", "prune", str(run), "--keep", "2", "--every", "40"]
    )
    assert "5 checkpoints are gone, which freed 0.1 MB" in shown.stdout
    assert "3 stay: 000000000048, 000000000084, 000000000096" in shown.stdout
    assert names(run) == [48, 84, 96]
    assert not list((run / "checkpoints").glob(".*"))
    assert all(folder_faults(path) == [] for path in complete_checkpoints(run))


def test_nothing_is_pruned_while_the_run_goes_on(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor from within the same Slurm job, whose requeued run would take the folder over."""
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (run / "unclip.lock").write_bytes(foreign_owner(job="7"))
    with pytest.raises(UserError, match="in use by host elsewhere, pid 1, Slurm job 7"):
        prune(run, "--keep", 1)
    assert names(run) == [48, 96]
    with Lease(run):  # what the job itself may do
        pass
    assert prune(run, "--keep", 1)["kept"] == ["000000000096"]


def foreign_owner(job: str) -> bytes:
    """A lease that another machine has just renewed."""
    from dataclasses import replace

    from base.owner import Owner

    return replace(Owner.me(), host="elsewhere", pid=1, job=job, token="other").to_bytes()


def test_nothing_is_pruned_when_the_latest_is_damaged(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run))
    latest = latest_checkpoint(run)
    assert latest is not None
    (latest / "trainer.json").write_text("{}")
    with pytest.raises(UserError, match=r"trainer\.json: got 2 bytes, .*so nothing is deleted"):
        prune(run, "--keep", 1)
    (run / "latest").write_text("000000000077\n")
    with pytest.raises(UserError, match=r"000000000077/manifest\.json: missing"):
        prune(run, "--keep", 1)
    assert names(run) == [48, 96]
