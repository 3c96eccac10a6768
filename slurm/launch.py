"""A pipeline launched: what is done is skipped, what is queued is left alone, the rest begins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from submitit.core.utils import FailedJobError

from base.config import load_config
from base.errors import UserError, one_line
from base.lease import Lease
from slurm import batch, queue
from slurm.config import PipelineConfig, Resources
from slurm.graph import Node, build
from slurm.records import Records, Spec

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's file, read and looked through."""

    config: PipelineConfig
    nodes: list[Node]

    @staticmethod
    def read(path: Path, overrides: list[str]) -> Pipeline:
        """Raises:
        UserError: a value, a name, a file that is not there, an impossible wish.
        """
        config = load_config(path, PipelineConfig, overrides)
        pipeline = Pipeline(config, build(config, path.absolute().parent))
        for node in pipeline.nodes:
            pipeline.require_sensible(node)
        return pipeline

    @cached_property
    def records(self) -> Records:
        """The launcher's folder below `out`."""
        return Records(Path(self.config.out).absolute() / "launch")

    def asked(self, node: Node) -> Resources:
        """What a stage asks for."""
        return self.config.asked(node.name)

    def require_sensible(self, node: Node) -> None:
        """What no cluster could give sense to.

        Raises:
            UserError: several processes for work that one does.
        """
        asked = self.asked(node)
        if node.kind in ("prepare", "embed") and (asked.nodes, asked.tasks) != (1, 1):
            raise UserError(
                f"stages.{node.name}.resources: got {asked.nodes} × {asked.tasks} processes; "
                f"a stage of kind {node.kind} is one process of one node (tasks_per_node: 1), "
                "whose Ray takes all of cpus_per_task and gpus_per_node"
            )


def run_here(pipeline: Pipeline, say: Say) -> None:
    """All stages that are not done, one after another, in this machine's processes.

    Raises:
        SystemExit: a stage did not end well, with its exit code; 75: run the same again.
        UserError: another launch runs here; a stage was made by something else.
    """
    records = pipeline.records
    with Lease(records.folder):
        specs = records.freeze(pipeline.nodes)
        for number, spec in enumerate(specs.values(), 1):
            title = f"[{number}/{len(specs)}] {spec.name}"
            if records.is_done(spec):
                say(f"{title}: done before")
                continue
            say(title)
            code = _run_alone(records.spec_path(spec), spec)
            if code:
                say(f"{spec.name}: ended with {code}; run the same command again to go on")
                raise SystemExit(code)


def _run_alone(path: Path, spec: Spec) -> int:
    """A stage's job in a process of its own, which saves and ends when this one is asked to."""
    program = "import sys; from slurm.job import run_job; run_job(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": spec.code}
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], env=environment)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # not SIGINT: a terminal's has reached it, and two end it unsaved
            child.terminate()


def submit(pipeline: Pipeline, say: Say) -> dict[str, str]:
    """Submit what is neither done nor queued; the job of each such stage.

    Raises:
        UserError: there is no Slurm, or it refuses a job; what was submitted before is cancelled.
    """
    queue.require_slurm()
    records, jobs = pipeline.records, dict[str, str]()
    with Lease(records.folder):
        specs = records.freeze(pipeline.nodes)
        alive = {name: job for name, job, _ in _alive(records)}
        new = list[str]()
        for node, spec in zip(pipeline.nodes, specs.values(), strict=True):
            if records.is_done(spec):
                say(f"{node.name}: done before")
            elif node.name in alive:
                jobs[node.name] = alive[node.name]
                say(f"{node.name}: job {alive[node.name]}, submitted before")
            else:
                after = [jobs[need] for need in node.needs if need in jobs]
                given = batch.parameters(spec, pipeline.asked(node), after)
                jobs[node.name] = _submitted(records, spec, given, new)
                new.append(jobs[node.name])
                records.set_job(node.name, jobs[node.name])
                waits = f", after {', '.join(after)}" if after else ""
                say(f"{node.name}: job {jobs[node.name]}{waits}")
    return jobs


def _submitted(records: Records, spec: Spec, given: dict[str, object], new: list[str]) -> str:
    try:
        return batch.submit(records, spec, given)
    except (FailedJobError, OSError) as error:
        queue.cancel(new)
        reason = one_line(error).replace("sbatch: error: ", "")
        also = f"; jobs {', '.join(new)} of this launch were cancelled" if new else ""
        raise UserError(f"stages.{spec.name}: Slurm refuses it: {reason}{also}") from error


def _alive(records: Records) -> Iterator[tuple[str, str, queue.JobState]]:
    """Stages whose job runs or may still; those that wait for a job that failed are cancelled."""
    jobs = records.jobs()
    known = queue.states(jobs.values())
    for name, job in jobs.items():
        state = known.get(job)
        if state is None or not state.alive:
            continue
        if state.hopeless:
            queue.cancel([job])
            continue
        yield name, job, state
