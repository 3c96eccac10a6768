"""The pipeline file: stages, what each is made from, and what each asks of the cluster."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from base.config import Config

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]

RECORDS = "launch"  # the launcher's folder below `out`
NAME = re.compile(r"[a-z][a-z0-9_-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Of sbatch's options those that follow from fields of Resources, or that a job's end depends on.
_OURS = (
    *("partition", "account", "qos", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task"),
    *("mem", "time", "signal", "constraint", "exclude", "requeue", "dependency", "array", "output"),
    *("error", "open-mode", "job-name", "comment", "wckey"),
)
_TIME = re.compile(r"(?:(\d+)-)?(\d{1,2}):(\d{2}):(\d{2})|(\d+)")


class Resources(Config):
    """What a stage asks for; a value that a stage leaves out is the pipeline's.

    A field of None is not asked for: the cluster's own default holds.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: Count | None = None
    min_nodes: Count | None = None  # of training: as many as there are, from here to `nodes`
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None  # one process each; 0: CPUs alone
    tasks_per_node: Count | None = None  # processes; None: one for each GPU, or one
    cpus_per_task: Count | None = None
    mem_gb: Annotated[float, Field(gt=0)] | None = None  # of a node
    time: Text | Count | None = None  # D-HH:MM:SS, HH:MM:SS or minutes
    signal_delay_s: Count | None = None  # before the end: save now; None: by the measured saves
    constraint: str | None = None
    exclude: str | None = None
    setup: tuple[str, ...] | None = None  # lines of the batch script before the job
    python: Text | None = None  # of the processes, within a container; None: the launcher's
    env: dict[str, str] | None = None  # for all processes: NCCL_*, HF_HOME, …
    srun: tuple[str, ...] | None = None  # more arguments: --container-image=…, --cpu-bind=…
    sbatch: dict[str, str | int | bool] | None = None  # more of its options: {reservation: big, …}

    @field_validator("time")
    @classmethod
    def _is_time(cls, value: str | int | None) -> str | int | None:
        if value is not None and not (_TIME.fullmatch(str(value)) and _minutes(str(value))):
            raise ValueError(f"got {value!r}, expected D-HH:MM:SS, HH:MM:SS or minutes, above 0")
        return value

    @field_validator("env")
    @classmethod
    def _are_names(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for name in value or {}:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"got {name!r}, expected a variable's name")
        return value

    @field_validator("sbatch")
    @classmethod
    def _are_others(
        cls, value: dict[str, str | int | bool] | None
    ) -> dict[str, str | int | bool] | None:
        for name in value or {}:
            if name.replace("_", "-") in _OURS:
                raise ValueError(f"got {name!r}, which the launcher gives itself")
        return value

    @property
    def minutes(self) -> int | None:
        """The time limit, rounded up."""
        return None if self.time is None else _minutes(str(self.time))

    @property
    def tasks(self) -> int:
        """Processes of a node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    def over(self, other: Resources) -> Resources:
        """These values, and the other's where there is none; of `env`, `sbatch` both."""
        given = {key: value for key, value in self if value is not None}
        env = {**(other.env or {}), **(self.env or {})}
        sbatch = {**(other.sbatch or {}), **(self.sbatch or {})}
        return other.model_copy(update={**given, "env": env or None, "sbatch": sbatch or None})


def _minutes(time: str) -> int:
    found = _TIME.fullmatch(time)
    assert found is not None
    days, hours, minutes, seconds, alone = (int(part or 0) for part in found.groups())
    return alone or (24 * days + hours) * 60 + minutes + (seconds > 0)


DEFAULTS = Resources(nodes=1, gpus_per_node=0, time="01:00:00")


class _Stage(Config):
    """What all kinds have."""

    resources: Resources = Resources()
    verify: bool = True  # every hash of what was made, before the next stage may begin


class PrepareStage(_Stage):
    """`unclip data prepare`: a DATASET."""

    kind: Literal["prepare"]
    inputs: Annotated[tuple[Text, ...], Field(min_length=1)]
    clip: Text = "none"
    config: str | None = None


class EmbedStage(_Stage):
    """`unclip data embed`: embeddings for a DATASET; who needs them names this stage as data."""

    kind: Literal["embed"]
    data: Text
    clip: Text


class TrainStage(_Stage):
    """`unclip train`: a RUN."""

    kind: Literal["train"]
    config: Text
    data: Annotated[tuple[Text, ...], Field(min_length=1)]
    clip: Text | None = None
    init_from: Text | None = None
    overrides: tuple[str, ...] = ()  # as of --set


class EvaluateStage(_Stage):
    """`unclip evaluate`: a report on a cascade, which is written from what stands here."""

    kind: Literal["evaluate"]
    data: Text
    cascade: dict[str, Any]  # cascade.yaml; RUNs of this pipeline as stages.NAME
    count: Count | None = None


Stage = Annotated[
    PrepareStage | EmbedStage | TrainStage | EvaluateStage, Field(discriminator="kind")
]


class PlanConfig(Config):
    """What a dry run's costs are of, as `unclip plan` takes it."""

    memory: Text = "80GB"  # of each GPU
    peak: Annotated[float, Field(gt=0)] | None = None  # TFLOP/s; None: an H100's
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.4

    def words(self) -> list[str]:
        """Of the command."""
        peak = [] if self.peak is None else ["--peak", str(self.peak)]
        return ["--memory", self.memory, *peak, "--mfu", str(self.mfu)]


class PipelineConfig(Config):
    """One file. `stages.NAME` in a value is what that stage makes."""

    out: Text  # everything: DATASETs, RUNs, reports, and the launcher's records
    plan: PlanConfig = PlanConfig()
    resources: Resources = Resources()
    stages: Annotated[dict[str, Stage], Field(min_length=1)]

    @model_validator(mode="after")
    def _named(self) -> PipelineConfig:
        for name in self.stages:
            if not NAME.fullmatch(name):
                raise ValueError(f"stages: got name {name!r}, expected one like up256")
            if name == RECORDS:
                raise ValueError(f"stages: got name {name!r}, whose folder is the launcher's")
        return self

    def asked(self, name: str) -> Resources:
        """What a stage asks for, with the pipeline's values and the defaults below its own."""
        return self.stages[name].resources.over(self.resources.over(DEFAULTS))
