"""A pipeline launched: what is done is skipped, what is queued is left alone, the rest begins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from submitit.core.utils import FailedJobError

from base.errors import UserError, one_line
from base.lease import Lease, end_lease, owner
from base.owner import Owner
from slurm import queue
from slurm.batch import Batch
from slurm.check import check_configs, require_inputs
from slurm.config import Resources
from slurm.environment import leave_array, require_safe_path, with_code
from slurm.graph import Node
from slurm.pipeline import Pipeline
from slurm.records import Spec
from slurm.survey import survey

Say = Callable[[str], None]


def run_here(pipeline: Pipeline, say: Say) -> None:
    """All stages that are not done, one after another, in this machine's processes.

    Raises:
        SystemExit: a stage did not end well, with its exit code; 75: run the same again.
        UserError: another launch runs here; a stage was made by something else.
    """
    require_safe_path()
    require_inputs(pipeline)
    records = pipeline.records
    with Lease(records.folder):
        specs = records.freeze(pipeline.nodes)
        check_configs(node for node in pipeline.nodes if not records.is_done(specs[node.name]))
        for number, spec in enumerate(specs.values(), 1):
            title = f"[{number}/{len(specs)}] {spec.name}"
            if records.is_done(spec):
                say(f"{title}: done before")
                continue
            say(title)
            records.set_here(spec.name, None)
            code = _run_alone(records.spec_path(spec), spec, pipeline.config.asked(spec.name))
            records.set_here(spec.name, code)
            if code:
                say(f"{spec.name}: ended with {code}; run the same command again to go on")
                raise SystemExit(code)


def _run_alone(path: Path, spec: Spec, asked: Resources) -> int:
    """A stage's job in a process of its own, which saves and ends when this one is asked to."""
    program = "import sys; from slurm.job import run_job; run_job(sys.argv[1])"
    environment = with_code({**os.environ, **(asked.env or {})}, spec.code)
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
    require_safe_path()
    require_inputs(pipeline)
    leave_array(os.environ)
    records, new = pipeline.records, list[str]()
    with Lease(records.folder):
        specs = records.freeze(pipeline.nodes)
        found = survey(pipeline, specs)
        for name in (node.name for node in pipeline.nodes if node.name in found.done):
            say(f"{name}: done before")
        check_configs(node for nodes in found.left for node in nodes)
        for nodes in found.left:
            require_acceptable(pipeline, [specs[node.name] for node in nodes], nodes[0])
        queue.cancel(found.stranded)
        for spec in (specs[name] for name in found.names_left):
            if (other := _holder(spec)) is not None and _is_of_ended(pipeline, spec, other):
                end_lease(Path(spec.makes), other)
        jobs = dict(found.alive)
        for name, number in jobs.items():
            say(f"{name}: job {number}, submitted before")
        for nodes in found.left:
            after = [jobs[need] for need in nodes[0].needs if need in jobs]
            wanted = [specs[node.name] for node in nodes]
            job = Batch(records, wanted, pipeline.asked(nodes[0]), after)
            new += (numbers := _submitted(job, new))
            for spec, number in zip(wanted, numbers, strict=True):
                jobs[spec.name] = number
                records.set_job(spec, number)
                waits = f", after {', '.join(after)}" if after else ""
                say(f"{spec.name}: job {number}{waits}")
    return jobs


def require_acceptable(pipeline: Pipeline, specs: list[Spec], node: Node) -> None:
    """Before anything is submitted: that nobody is at work there, and that Slurm would take it.

    Raises:
        UserError: who has a RUN's folder, or Slurm's reason.
    """
    for spec in specs:
        other = _holder(spec)
        if other is not None and not _is_of_ended(pipeline, spec, other):
            raise UserError(f"stages.{spec.name}: {spec.run} is in use by {other.describe()}")
    reason = queue.refusal(Batch(pipeline.records, specs, pipeline.asked(node)).script)
    if reason is not None:
        raise UserError(f"stages.{node.name}: Slurm refuses it: {reason}")


def _holder(spec: Spec) -> Owner | None:
    return None if spec.run is None else owner(spec.run)


def _is_of_ended(pipeline: Pipeline, spec: Spec, other: Owner) -> bool:
    """Whether it is the job that this stage, which is left to be submitted, had before.

    Killed, it may have left its lease, on a machine that nobody here can look into.
    """
    return other.job is not None and other.job == pipeline.records.jobs().get(spec.name)


def _submitted(job: Batch, new: list[str]) -> list[str]:
    try:
        return job.submit()
    except (FailedJobError, OSError) as error:
        queue.cancel(new)
        reason = one_line(error).replace("sbatch: error: ", "")
        also = f"; jobs {', '.join(new)} of this launch were cancelled" if new else ""
        raise UserError(f"stages.{job.specs[0].name}: Slurm refuses it: {reason}{also}") from error
