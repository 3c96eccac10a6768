"""What a testbed is to be like: how many nodes, how large, how patient."""

from __future__ import annotations

from pydantic import Field

from base.config import Config


class Shape(Config):
    """Nodes are as large as they say, not as the machine is: Slurm takes their word for it."""

    nodes: int = Field(default=2, ge=1, le=64)
    cpus: int = Field(default=4, ge=1, le=1024)  # of each node
    memory: int = Field(default=16_000, ge=100)  # megabytes of each node
    grace: int = Field(default=30, ge=0)  # seconds from preemption's signal to the end
    requeue_delay: int = Field(default=10, ge=5)  # seconds that a requeued job waits at least
    node_timeout: int = Field(default=15, ge=5)  # seconds until a silent node is down

    @property
    def names(self) -> list[str]:
        """The nodes' names."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]
