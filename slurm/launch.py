"""A pipeline launched: what is done is skipped, what is queued is left alone, the rest begins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from submitit.core.utils import FailedJobError

from base.config import load_config
from base.errors import UserError, one_line
from base.lease import Lease, owner
from slurm import batch, queue
from slurm.config import PipelineConfig, Resources
from slurm.graph import Node, build
from slurm.records import Records, Spec
from slurm.sweep import sweep

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's file, read and looked through."""

    config: PipelineConfig
    nodes: list[Node]
    swept: Sequence[str] = ()  # the variants of a sweep, which are one array of jobs

    @staticmethod
    def read(
        path: Path,
        overrides: list[str],
        settings: list[str] | None = None,
        stage: str | None = None,
    ) -> Pipeline:
        """`settings` and `stage` are those of a sweep.

        Raises:
            UserError: a value, a name, a file that is not there, an impossible wish.
        """
        config, swept = load_config(path, PipelineConfig, overrides), list[str]()
        if settings:
            config, swept = sweep(config, stage, settings)
        pipeline = Pipeline(config, build(config, path.absolute().parent), swept)
        for node in pipeline.nodes:
            pipeline.require_sensible(node)
        return pipeline

    @cached_property
    def records(self) -> Records:
        """The launcher's folder below `out`."""
        return Records(Path(self.config.out).absolute() / "launch")

    def jobs(self) -> list[list[Node]]:
        """The stages, those that are one array of jobs together."""
        single = [[node] for node in self.nodes if node.name not in self.swept]
        array = [node for node in self.nodes if node.name in self.swept]
        return [*single, array] if array else single

    def asked(self, node: Node) -> Resources:
        """What a stage asks for."""
        return self.config.asked(node.name)

    def require_sensible(self, node: Node) -> None:
        """What no cluster could give sense to.

        Raises:
            UserError: several processes for work that one does, or an empty range of nodes.
        """
        asked, where = self.asked(node), f"stages.{node.name}.resources"
        if node.kind in ("prepare", "embed") and asked.tasks != 1:
            raise UserError(
                f"{where}.tasks_per_node: got {asked.tasks}, expected 1: a stage of kind "
                f"{node.kind} is one process a node, whose Ray takes all of cpus_per_task and "
                "gpus_per_node"
            )
        if node.kind == "evaluate" and (asked.nodes, asked.tasks) != (1, 1):
            raise UserError(f"{where}: got {asked.nodes} × {asked.tasks} processes, expected one")
        delay, minutes = asked.signal_delay_s, asked.minutes
        if delay is not None and minutes is not None and delay >= 60 * minutes:
            raise UserError(
                f"{where}.signal_delay_s: got {delay}, expected less than time, {60 * minutes} s"
            )
        if asked.min_nodes is not None and node.kind != "train":
            raise UserError(f"{where}.min_nodes: is for stages of kind train alone")
        if asked.min_nodes is not None and asked.min_nodes > (asked.nodes or 1):
            raise UserError(
                f"{where}.min_nodes: got {asked.min_nodes}, expected at most nodes, {asked.nodes}"
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
    records, jobs, new = pipeline.records, dict[str, str](), list[str]()
    with Lease(records.folder):
        specs = records.freeze(pipeline.nodes)
        alive = {name: job for name, job, _ in _alive(records)}
        left = [_left(nodes, records, specs, alive, say) for nodes in pipeline.jobs()]
        left = [nodes for nodes in left if nodes]
        for nodes in left:
            require_acceptable(pipeline, [specs[node.name] for node in nodes], nodes[0])
        jobs |= {node.name: alive[node.name] for node in pipeline.nodes if node.name in alive}
        for nodes in left:
            after = [jobs[need] for need in nodes[0].needs if need in jobs]
            wanted = [specs[node.name] for node in nodes]
            given = batch.parameters(wanted, pipeline.asked(nodes[0]), after)
            new += (numbers := _submitted(records, wanted, given, new))
            for spec, job in zip(wanted, numbers, strict=True):
                jobs[spec.name] = job
                records.set_job(spec.name, job)
                waits = f", after {', '.join(after)}" if after else ""
                say(f"{spec.name}: job {job}{waits}")
    return jobs


def _left(
    nodes: list[Node],
    records: Records,
    specs: Mapping[str, Spec],
    alive: Mapping[str, str],
    say: Say,
) -> list[Node]:
    """Those of a job's stages that are to be submitted."""
    left = []
    for node in nodes:
        if records.is_done(specs[node.name]):
            say(f"{node.name}: done before")
        elif node.name in alive:
            say(f"{node.name}: job {alive[node.name]}, submitted before")
        else:
            left.append(node)
    return left


def require_acceptable(pipeline: Pipeline, specs: list[Spec], node: Node) -> None:
    """Before anything is submitted: that nobody is at work there, and that Slurm would take it.

    Raises:
        UserError: who has a RUN's folder, or Slurm's reason.
    """
    for spec in specs:
        if spec.run is not None and (other := owner(spec.run)) is not None:
            raise UserError(f"stages.{spec.name}: {spec.run} is in use by {other.describe()}")
    given = batch.parameters(specs, pipeline.asked(node))
    reason = queue.refusal(batch.script(pipeline.records, given))
    if reason is not None:
        raise UserError(f"stages.{node.name}: Slurm refuses it: {reason}")


def _submitted(
    records: Records, specs: list[Spec], given: dict[str, object], new: list[str]
) -> list[str]:
    try:
        return batch.submit(records, specs, given)
    except (FailedJobError, OSError) as error:
        queue.cancel(new)
        reason = one_line(error).replace("sbatch: error: ", "")
        also = f"; jobs {', '.join(new)} of this launch were cancelled" if new else ""
        raise UserError(f"stages.{specs[0].name}: Slurm refuses it: {reason}{also}") from error


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
