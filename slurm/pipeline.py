"""A pipeline's file, read and looked through before anything is done with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from base.config import load_config
from base.errors import UserError
from slurm.config import RECORDS, PipelineConfig, Resources
from slurm.graph import Node, build
from slurm.records import Records
from slurm.sweep import sweep


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's file, read and looked through."""

    config: PipelineConfig
    nodes: list[Node]
    here: Path  # the folder of its file
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
        here = path.absolute().parent
        pipeline = Pipeline(config, build(config, here), here, swept)
        for node in pipeline.nodes:
            pipeline.require_sensible(node)
        return pipeline

    @cached_property
    def records(self) -> Records:
        """The launcher's folder below `out`."""
        return Records(Path(self.config.out).absolute() / RECORDS)

    def jobs(self) -> list[list[Node]]:
        """The stages, those that are one array of jobs together."""
        single = [[node] for node in self.nodes if node.name not in self.swept]
        array = [node for node in self.nodes if node.name in self.swept]
        return [*single, array] if array else single

    def at(self, path: str) -> Path:
        """A path of the file, which is one below its own folder."""
        return self.here / path

    def asked(self, node: Node) -> Resources:
        """What a stage asks for."""
        return self.config.asked(node.name)

    def require_sensible(self, node: Node) -> None:
        """What no cluster could give sense to.

        Raises:
            UserError: several processes a node for work that one does, or an empty range of nodes.
        """
        asked, where = self.asked(node), f"stages.{node.name}.resources"
        if node.kind in ("prepare", "embed") and asked.tasks != 1:
            raise UserError(
                f"{where}.tasks_per_node: got {asked.tasks}, expected 1: a stage of kind "
                f"{node.kind} is one process a node, whose Ray takes all of cpus_per_task and "
                "gpus_per_node"
            )
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
