"""Where a pipeline's stages stand: done, with a job, or left to be submitted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from base.errors import UserError
from slurm import queue
from slurm.graph import Node
from slurm.pipeline import Pipeline
from slurm.records import Spec

_ENDING_SECONDS = 90.0  # that a job may take to end
_POLL_SECONDS = 1.0


@dataclass
class Survey:
    """Every stage is in one of the three."""

    done: set[str] = field(default_factory=set)
    alive: dict[str, str] = field(default_factory=dict)  # its job, which runs or may still
    left: list[list[Node]] = field(default_factory=list)  # as the jobs that they are to be
    stranded: list[str] = field(default_factory=list)  # jobs of stages left, waiting for no one

    @property
    def names_left(self) -> set[str]:
        """The stages that are left."""
        return {node.name for nodes in self.left for node in nodes}


def survey(pipeline: Pipeline, specs: Mapping[str, Spec]) -> Survey:
    """Look at records and queue; nothing is changed.

    What needs a stage that is not done is not done either. A job that waits for one that will not
    end well is not alive: its stage is left, and so are those of all that wait for it.

    Raises:
        UserError: Slurm does not answer, a job is still ending, or a stage was made by something
            else, or is queued to be.
    """
    found, jobs = Survey(), pipeline.records.jobs()
    states = _settled([jobs[node.name] for node in pipeline.nodes if node.name in jobs])
    for nodes in pipeline.jobs():
        left = []
        for node in nodes:
            job = jobs.get(node.name, "")
            state = states.get(job)
            if found.done.issuperset(node.needs) and pipeline.records.is_done(specs[node.name]):
                found.done.add(node.name)
            elif state is None or not state.alive:
                left.append(node)
            elif state.hopeless or found.names_left.intersection(node.needs):
                left.append(node)
                found.stranded.append(job)
            else:
                _require_same(pipeline, specs[node.name], job)
                found.alive[node.name] = job
        if left:
            found.left.append(left)
    return found


def _require_same(pipeline: Pipeline, spec: Spec, job: str) -> None:
    if pipeline.records.queued_with(spec.name) != spec.fingerprint:
        raise UserError(
            f"stages.{spec.name}: job {job} was submitted with another command or config; "
            "end it with --cancel, or set that back"
        )


def _settled(jobs: list[str]) -> dict[str, queue.JobState]:
    """The jobs' states, when none is just ending: it may be about to run again, or not."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while True:
        states = queue.states(jobs)
        ending = [job for job, state in states.items() if state.state == "COMPLETING"]
        if not ending:
            return states
        if time.monotonic() > deadline:
            raise UserError(f"job {', '.join(ending)}: still ending; try again in a while")
        time.sleep(_POLL_SECONDS)
