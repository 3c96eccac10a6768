"""A pipeline on a real Slurm: two ranks on two nodes, signalled, requeued, failed, gone on with."""

import json
import shutil
from pathlib import Path

import pytest
from launches import (
    ROOT,
    by_template,
    jobs,
    log_of,
    pipeline,
    same_files,
    unclip,
    wait_done,
    weights,
)
from slurm_jobs import history, state, wait, wait_for

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
    """A DATASET with embeddings, and the CLIP that they are of; `bare` beside it has none."""
    dataset, clip = pairs.parent / "dataset", pairs.parent / "clip"
    unclip("data", "prepare", pairs, "--out", dataset, "--set", "samples_per_shard=16")
    shutil.copytree(dataset, pairs.parent / "bare")
    sets = (f"--set=out={clip}", f"--set=data.paths=[{dataset}]")
    unclip("train", ROOT / "configs/micro/clip.yaml", *sets)
    unclip("data", "embed", dataset, "--clip", clip)
    return dataset, clip


def test_a_signal_costs_a_requeue_and_not_a_bit(
    cluster: Cluster, embedded: tuple[Path, Path], tmp_path: Path
) -> None:
    """USR2 in mid-training of the prior: both ranks save together, and it ends as if alone.

    With ZeRO 1 and 2; of two ranks they add the same two gradients, so that one undisturbed run is
    enough. All three at once: most of the time is waited.
    """
    dataset, clip = embedded

    def launched(name: str, zero: int) -> tuple[Path, str]:
        folder = tmp_path / name
        path = pipeline(folder, samples=6144, data=str(dataset), zero=zero, clip=clip)
        return path, jobs(path, cluster)["prior"]

    calm, *hurt = launched("calm", 1), launched("one", 1), launched("two", 2)
    waiting = list(hurt)

    def all_told() -> bool:
        """Each as soon as it has taken steps: the second may be done when the first begins."""
        for path, job in list(waiting):
            metrics = path.parent / "run/prior/metrics.jsonl"
            if metrics.is_file() and metrics.read_text().count("\n") > 3:
                cluster.run("scancel", "--signal=USR2", job)
                waiting.remove((path, job))
        return not waiting

    wait(all_told, "steps", 240)
    for path, job in (calm, *hurt):
        wait_done(path, {"prior": job}, cluster)
    for path, job in hurt:
        log = log_of(path, "prior", cluster)
        assert log.count(f"saved; job {job} is requeued and goes on at ") == 1
        assert log.count("preempted: ") == 1
        assert weights(path.parent, "prior") == weights(calm[0].parent, "prior")


def test_a_plain_batch_script_embeds_on_two_nodes_what_one_process_embeds(
    cluster: Cluster, embedded: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, clip = embedded
    bare = dataset.with_name("bare")
    job = by_template(cluster, tmp_path, "embed", bare, "--clip", clip)
    wait_for(cluster, job, "COMPLETED", "FAILED", seconds=180)
    log = (tmp_path / "embed.out").read_text()
    assert state(cluster, job) == "COMPLETED", log
    assert log.count("Ray: 2 nodes") == 1
    same_files(bare, dataset)


@pytest.mark.timeout(1200)  # some three minutes on two quiet cores
def test_the_micro_pipeline_of_which_the_decoder_fails_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    """What needs it waits, the others end; a second launch does the rest only."""
    for name, count, seed in (("train", 96, 7), ("heldout", 32, 8)):
        unclip("data", "synth", tmp_path / name, "--count", count, "--seed", seed)
    out, env = tmp_path / "run", "resources.env={OMP_NUM_THREADS: '1'}"
    inputs = [f"stages.{name}.inputs=[{tmp_path / name}]" for name in ("train", "heldout")]
    wide = [f"stages.{name}.resources={{nodes: 2}}" for name in ("train", "train-embedded")]
    sets = [word for value in (f"out={out}", env, *inputs, *wide) for word in ("--set", value)]
    micro = (ROOT / "configs/pipelines/micro.yaml", *sets, "--json")

    def states() -> dict[str, str]:
        shown = json.loads(unclip("launch", *micro, "--status", cluster=cluster))["stages"]
        return {stage["name"]: stage["state"] for stage in shown}

    def done() -> set[str]:
        return {name for name, state in states().items() if state == "done"}

    (out / "decoder").parent.mkdir()
    (out / "decoder").write_text("a file where the RUN's folder is to be\n")
    first = json.loads(unclip("launch", *micro, cluster=cluster))["jobs"]
    assert len(first) == 10
    wait_for(cluster, first["decoder"], "FAILED", seconds=400)
    others = first.keys() - {"decoder", "report"}
    wait(lambda: done() >= others, "the others", 400, every=2)
    assert states()["report"] == "PENDING"
    (out / "decoder").unlink()
    second = json.loads(unclip("launch", *micro, cluster=cluster))["jobs"]
    assert second.keys() == {"decoder", "report"}
    wait(lambda: done() == first.keys(), "the rest", 300, every=2)
    assert (out / "report/report.html").is_file()
    told = json.loads((out / "prior/environment.json").read_text())
    assert told["command"][0].startswith(f"{out}/launch/frozen/")  # though launched in a checkout
    assert told["commit"] == commit()
    for name in others:
        assert history(cluster, first[name]) == ["COMPLETED"]
    _evaluate_by_template(cluster, out, tmp_path)


def _evaluate_by_template(cluster: Cluster, out: Path, folder: Path) -> None:
    """Over two nodes it measures what the launch's one process did."""
    (cascade,) = (out / "launch/frozen").rglob("report.yaml")
    words = (cascade, "--data", out / "heldout", "--out", folder / "again", "--count", 8)
    job = by_template(cluster, folder, "evaluate", *words)
    wait_for(cluster, job, "COMPLETED", "FAILED", seconds=180)
    assert state(cluster, job) == "COMPLETED", (folder / "evaluate.out").read_text()
    (one,), (two,) = (
        json.loads((report / "report.json").read_text())["results"]
        for report in (out / "report", folder / "again")
    )
    assert two["clip_score"]["true"] == pytest.approx(one["clip_score"]["true"])
    assert two["clip_score"]["drawn"]["cosine"] == pytest.approx(
        one["clip_score"]["drawn"]["cosine"], abs=1e-3
    )


def test_all_that_waits_for_what_failed_or_was_cancelled_is_submitted_anew(
    cluster: Cluster, pairs: Path, tmp_path: Path
) -> None:
    """However deep it lies: no job is left that waits for one that will not come."""
    path = pipeline(tmp_path, pairs, 64, resources={"nodes": 1})
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
