"""A pipeline on a real Slurm: two ranks on two nodes, signalled, requeued, failed, gone on with."""

import json
from pathlib import Path

import pytest
from launches import ROOT, jobs, log_of, pipeline, unclip, wait_done, weights
from slurm_jobs import history, wait, wait_for

from base import yaml
from base.source import commit
from slurm.testbed.cluster import Cluster

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    unclip("data", "synth", folder / "scenes", "--count", 64, "--seed", 3)
    return folder / "scenes"


@pytest.fixture(scope="module")
def embedded(pairs: Path) -> tuple[Path, Path]:
    """A DATASET with embeddings, and the CLIP that they are of."""
    dataset, clip = pairs.parent / "dataset", pairs.parent / "clip"
    unclip("data", "prepare", pairs, "--out", dataset)
    sets = (f"--set=out={clip}", f"--set=data.paths=[{dataset}]")
    unclip("train", ROOT / "configs/micro/clip.yaml", *sets)
    unclip("data", "embed", dataset, "--clip", clip)
    return dataset, clip


@pytest.mark.parametrize("zero", [1, 2])
def test_a_signal_costs_a_requeue_and_not_a_bit(
    cluster: Cluster, embedded: tuple[Path, Path], tmp_path: Path, zero: int
) -> None:
    """USR2 in mid-training of the prior: both ranks save together, and it ends as if alone."""
    dataset, clip = embedded

    def launched(folder: Path) -> tuple[Path, dict[str, str]]:
        path = pipeline(folder, samples=3072, data=str(dataset), zero=zero, clip=clip)
        return path, jobs(path, cluster)

    wait_done(*launched(tmp_path / "calm"), cluster)
    path, found = launched(tmp_path / "hurt")
    metrics = tmp_path / "hurt/run/prior/metrics.jsonl"
    wait(lambda: metrics.is_file() and metrics.read_text().count("\n") > 3, "some steps", 120)
    cluster.run("scancel", "--signal=USR2", found["prior"])
    wait_done(path, found, cluster)
    log = log_of(path, "prior", cluster)
    assert log.count(f"saved; job {found['prior']} is requeued and goes on at ") == 1
    assert log.count("preempted: ") == 1
    assert weights(tmp_path / "hurt", "prior") == weights(tmp_path / "calm", "prior")


@pytest.mark.timeout(1200)  # some three minutes on two quiet cores
def test_the_micro_pipeline_of_which_the_decoder_fails_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    """What needs it waits, the others end; a second launch does the rest only."""
    for name, count, seed in (("train", 96, 7), ("heldout", 32, 8)):
        unclip("data", "synth", tmp_path / name, "--count", count, "--seed", seed)
    out, env = tmp_path / "run", "resources.env={OMP_NUM_THREADS: '1'}"
    inputs = [f"stages.{name}.inputs=[{tmp_path / name}]" for name in ("train", "heldout")]
    sets = [word for value in (f"out={out}", env, *inputs) for word in ("--set", value)]
    micro = (ROOT / "configs/pipelines/micro.yaml", *sets, "--json")

    def states() -> dict[str, str]:
        shown = json.loads(unclip("launch", *micro, "--status", cluster=cluster))["stages"]
        return {stage["name"]: stage["state"] for stage in shown}

    (out / "decoder").parent.mkdir()
    (out / "decoder").write_text("a file where the RUN's folder is to be\n")
    first = json.loads(unclip("launch", *micro, cluster=cluster))["jobs"]
    assert len(first) == 10
    wait_for(cluster, first["decoder"], "FAILED", seconds=400)
    others = first.keys() - {"decoder", "report"}
    wait(lambda: all(states()[name] == "done" for name in others), "the others", 400)
    assert states()["report"] == "PENDING"
    (out / "decoder").unlink()
    second = json.loads(unclip("launch", *micro, cluster=cluster))["jobs"]
    assert second.keys() == {"decoder", "report"}
    wait(lambda: set(states().values()) == {"done"}, "the rest", 300)
    assert (out / "report/report.html").is_file()
    told = json.loads((out / "prior/environment.json").read_text())
    assert told["command"][0].startswith(f"{out}/launch/frozen/")  # though launched in a checkout
    assert told["commit"] == commit()
    for name in others:
        assert history(cluster, first[name]) == ["COMPLETED"]


def test_all_that_waits_for_what_failed_or_was_cancelled_is_submitted_anew(
    cluster: Cluster, pairs: Path, tmp_path: Path
) -> None:
    """However deep it lies: no job is left that waits for one that will not come."""
    path = pipeline(tmp_path, pairs, 64)
    shape = yaml.parse(path.read_text(), "")[0]
    again = {**shape["stages"]["clip"], "init_from": "stages.clip"}
    shape["stages"] |= {"second": again, "third": {**again, "init_from": "stages.second"}}
    path.write_text(yaml.dump(shape))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/data").write_text("a file where the DATASET is to be\n")
    first = jobs(path, cluster)
    wait_for(cluster, first["data"], "FAILED", seconds=120)
    (tmp_path / "run/data").unlink()
    second = jobs(path, cluster)
    assert second.keys() == first.keys()
    assert not set(second.values()) & set(first.values())
    unclip("launch", path, "--cancel", cluster=cluster)
    third = jobs(path, cluster)
    assert not set(third.values()) & set(second.values())
    wait_done(path, third, cluster)


def test_what_slurm_refuses_is_told_with_its_reason(
    cluster: Cluster, pairs: Path, tmp_path: Path
) -> None:
    path = pipeline(tmp_path / "p", pairs)
    for override, reason in (
        ("resources.partition=gpus", "invalid partition"),
        ("stages.clip.resources.mem_gb=9000", "node configuration is not available"),
    ):
        told = unclip("launch", path, "--set", override, cluster=cluster, code=2)
        assert reason.lower() in told.lower()
        assert "Slurm refuses it: " in told
        assert len([line for line in told.splitlines() if "error" in line]) == 1
    listed = cluster.run("squeue", "--noheader", "--format=%i")
    assert listed.strip() == ""


def test_a_dry_run_shows_what_is_submitted_and_cancel_ends_all_jobs(
    cluster: Cluster, pairs: Path, tmp_path: Path
) -> None:
    path = pipeline(tmp_path / "p", pairs)
    shown = json.loads(unclip("launch", path, "--dry-run", "--json", cluster=cluster))["stages"]
    scripts = {stage["name"]: stage["script"] for stage in shown}
    found = jobs(path, cluster)
    for name, job in found.items():
        for need, number in found.items():
            scripts[name] = scripts[name].replace(f"'afterok:<job of {need}>'", f"afterok:{number}")
        submitted = tmp_path / f"p/run/launch/jobs/{job}_submission.sh"
        assert submitted.read_text() == scripts[name]
    ended = json.loads(unclip("launch", path, "--cancel", "--json", cluster=cluster))["cancelled"]
    assert ended == found
    for job in found.values():
        wait_for(cluster, job, "CANCELLED")
