"""Pipelines of tests: launched, watched, waited for."""

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


def jobs(path: Path, cluster: Cluster) -> dict[str, str]:
    found: dict[str, str] = json.loads(unclip("launch", path, "--json", cluster=cluster))["jobs"]
    return found


def log_of(path: Path, stage: str, cluster: Cluster) -> str:
    return unclip("launch", path, "--logs", stage, cluster=cluster)


def wait_done(path: Path, found: dict[str, str], cluster: Cluster) -> None:
    def over() -> bool:
        shown = json.loads(unclip("launch", path, "--status", "--json", cluster=cluster))
        states = {stage["name"]: stage["state"] for stage in shown["stages"]}
        bad = {name for name, word in states.items() if word in ("FAILED", "TIMEOUT", "CANCELLED")}
        assert not bad, log_of(path, bad.pop(), cluster)
        return set(states.values()) == {"done"}

    wait(over, f"end of {found}", 240)


def weights(folder: Path, stage: str = "clip") -> bytes:
    out = folder / "weights.safetensors"
    unclip("checkpoint", "export", folder / "run" / stage, out, "--weights", "raw", "--replace")
    return out.read_bytes()
