"""Pipelines of tests: launched, watched, waited for."""

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from slurm_jobs import wait

from base import yaml
from slurm.testbed.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "slurm/templates"
SIZE = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
SAMPLES = 1536


def unclip(*words: object, cluster: Cluster | None = None, code: int = 0) -> str:
    environment = {**os.environ, **({} if cluster is None else cluster.environment)}
    done = subprocess.run(
        [sys.executable, "-m", "unclip", *map(str, words)],
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def pipeline(
    folder: Path,
    pairs: Path | None = None,
    samples: int = SAMPLES,
    *,
    data: str = "stages.data",
    zero: int = 1,
    clip: Path | None = None,
    resources: dict[str, Any] | None = None,
) -> Path:
    """A CLIP of two ranks on two nodes, on a DATASET that a job before it makes of pairs.

    With a `clip` it is a prior that is trained, on that one's embeddings.
    """
    name = "clip" if clip is None else "prior"
    overrides = [f"train.samples={samples}", "train.checkpoint_every=512", "train.log_every=64"]
    overrides += ["train.engine=deepspeed", f"train.zero_stage={zero}", "train.precision=fp32"]
    stages: dict[str, Any] = {}
    if pairs is not None:
        stages["data"] = {"kind": "prepare", "inputs": [str(pairs)]}
    stages[name] = {
        "kind": "train",
        "config": str(ROOT / f"configs/micro/{name}.yaml"),
        "data": [data],
        **({} if clip is None else {"clip": str(clip)}),
        "overrides": overrides,
        "resources": {"nodes": 2, **(resources or {})},
    }
    path = folder / "pipeline.yaml"
    env = {"OMP_NUM_THREADS": "1"}
    common = {"time": "00:15:00", "cpus_per_task": 1, "env": env}
    folder.mkdir(exist_ok=True)
    path.write_text(yaml.dump({"out": str(folder / "run"), "resources": common, "stages": stages}))
    return path


def by_template(cluster: Cluster, folder: Path, name: str, *words: object) -> str:
    """Submits a plain batch script as its head says."""
    where = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    export = f"--export=ALL,{where},PYTHONPATH={ROOT},OMP_NUM_THREADS=1"
    out = f"--output={folder}/%x.out"
    script = str(TEMPLATES / f"{name}.sbatch")
    return cluster.run("sbatch", "--parsable", *SIZE, export, out, script, *map(str, words)).strip()


def same_files(one: Path, two: Path) -> None:
    """Every file of two folders byte for byte."""
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (one, two)]
    assert names[0] == names[1]
    assert filecmp.cmpfiles(one, two, names[0], shallow=False)[1:] == ([], [])


def jobs(path: Path, cluster: Cluster) -> dict[str, str]:
    found: dict[str, str] = json.loads(unclip("launch", path, "--json", cluster=cluster))["jobs"]
    return found


def log_of(path: Path, stage: str, cluster: Cluster) -> str:
    return unclip("launch", path, "--logs", stage, cluster=cluster)


def wait_done(path: Path, found: dict[str, str], cluster: Cluster, seconds: float = 240) -> None:
    def over() -> bool:
        shown = json.loads(unclip("launch", path, "--status", "--json", cluster=cluster))
        states = {stage["name"]: stage["state"] for stage in shown["stages"]}
        bad = {name for name, word in states.items() if word in ("FAILED", "TIMEOUT", "CANCELLED")}
        assert not bad, log_of(path, bad.pop(), cluster)
        return set(states.values()) == {"done"}

    wait(over, f"end of {found}", seconds, every=2)  # each look is a process, which takes its time


def weights(folder: Path, stage: str = "clip") -> bytes:
    out = folder / "weights.safetensors"
    unclip("checkpoint", "export", folder / "run" / stage, out, "--weights", "raw", "--replace")
    return out.read_bytes()
