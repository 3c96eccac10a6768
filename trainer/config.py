"""The config of one training run; the model's and the objective's sections are the stage's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from base.config import Config

Precision = Literal["fp32", "bf16", "fp16"]

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Weight = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]  # an exponential average's decay
LARGEST_STD = 0.288  # EDM2's sigma_rel of a power function; just below that of a plain mean
Std = Annotated[float, Field(ge=0.001, le=LARGEST_STD)]

ModelT = TypeVar("ModelT")
ObjectiveT = TypeVar("ObjectiveT")


class DataConfig(Config):
    """Which DATASETs a run reads, in which order, and what it keeps of them in memory."""

    paths: Annotated[tuple[str, ...], Field(min_length=1)]  # folders, s3:// or gs://
    weights: tuple[Weight, ...] | None = None  # a share for each path; None: as one DATASET
    selection: str | None = None  # of curation, in every DATASET; None: all samples
    embeddings: str | None = None  # a set of embeddings/NAME; None: the DATASET's own
    streams: Positive = 64  # that take turns; processes x workers should divide it
    shuffle_block: Positive = 4  # shards of a stream whose runs are mixed
    shuffle_run: Positive = 64  # samples that are read side by side
    shuffle_buffer: Positive = 512  # samples of a stream that are mixed one by one
    cache: Literal["none", "ram"] = "none"  # ram: decoded pictures and tokens, from their first use
    cache_bytes: Positive = 2 << 30

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if self.weights is not None and len(self.weights) != len(self.paths):
            raise ValueError(f"weights: got {len(self.weights)}, expected {len(self.paths)}")
        return self


class OptimConfig(Config):
    """AdamW and its learning rate; lengths are in samples."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Share, Share] = (0.9, 0.99)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # of tensors with two or more dimensions
    no_decay: tuple[str, ...] = ()  # names of such that do not, as of files: "*positions"
    clip_grad: Annotated[float, Field(ge=0)] = 1.0  # largest global norm; 0: not clipped
    warmup: Count = 0
    schedule: Literal["constant", "cosine"] = "constant"
    final: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of lr left at the end of a cosine


class LoopConfig(Config):
    """How long, in what portions, and on what engine; lengths are in samples."""

    samples: Positive
    batch: Positive  # over all ranks and micro-batches
    micro_batch: Positive | None = None  # per rank; None: the rank's whole share
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where it is fast
    engine: Literal["deepspeed", "local"] = "deepspeed"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    offload: Literal["none", "optimizer"] = "none"  # to the host's memory, with ZeRO 1 to 3
    checkpoint_activations: bool = False  # of the model's blocks: less memory, a third more work
    compile: bool = False  # the model's blocks, by torch.compile at their first use
    channels_last: bool = False  # pictures inside a U-Net: for tensor cores; slower on a CPU
    workers: Count = 0  # reading processes; 0: one thread of this process
    read_ahead: Positive = 4  # global batches
    checkpoint_every: Positive | None = None  # None: at the end and when stopped
    async_save: bool = True  # written while training goes on, from a copy in the host's memory
    keep: Positive = 2  # the last checkpoints, which stay
    keep_every: Positive | None = None  # the first at or after each multiple stays for ever
    keep_best: Count = 0  # so many with the lowest loss since the one before stay too
    pictures: Count = 8  # drawn at every checkpoint from averaged weights; 0: none
    log_every: Positive | None = None  # None: about 200 lines in the run
    threads: Positive | None = None  # CPU threads of the model; None: torch's own choice

    @model_validator(mode="after")
    def _fits(self) -> LoopConfig:
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(f"micro_batch: got {self.micro_batch}, expected <= batch {self.batch}")
        if self.offload != "none" and (self.engine == "local" or self.zero_stage == 0):
            raise ValueError(
                f"offload: got {self.offload}, expected none without DeepSpeed's ZeRO 1 to 3"
            )
        return self


class EmaConfig(Config):
    """Averages of the weights: one of constant decay, and power functions of time beside it."""

    decay: Share = 0.9999  # of `ema`, the one that sampling uses unless told otherwise
    warmup: Annotated[float, Field(ge=0)] = 10.0  # decay <= (1 + u) / (warmup + u); 0: none
    powers: tuple[Std, ...] = ()  # kinds such as ema_0.050, by their widths relative to the run
    snapshot_every: Positive | None = None  # samples; of `powers`, for `unclip checkpoint ema`

    @model_validator(mode="after")
    def _fits(self) -> EmaConfig:
        for std in self.powers:
            if round(std, 3) != std or self.powers.count(std) > 1:
                raise ValueError(f"powers: got {std}, expected three decimals, each value once")
        if self.snapshot_every is not None and not self.powers:
            raise ValueError("snapshot_every: snapshots are of `powers`, and there are none")
        return self


class WandbConfig(Config):
    """Weights & Biases: the package is the extra `wandb`."""

    project: str
    mode: Literal["online", "offline"] = "online"


class LogConfig(Config):
    """Where a run's numbers go beside metrics.jsonl and TensorBoard."""

    peak_tflops: Weight | None = None  # of a device, for MFU; None: by its name, where it is known
    wandb: WandbConfig | None = None
    prometheus_port: Annotated[int, Field(ge=0, le=65535)] | None = None  # of the first rank


class GuardConfig(Config):
    """What a run does about a loss that blows up; docs/guards.md gives the reasons."""

    bad_steps: Positive = 20  # in a row without a finite loss and gradient: back to a checkpoint
    spike_z: Weight | None = None  # deviations above the median of the last losses; None: any
    spike_window: Annotated[int, Field(ge=8)] = 128  # applied steps that a loss is compared with
    rollbacks: Count = 3  # in all; the next trouble ends the run
    hang_after_s: Weight = 600.0  # without a move a rank is named, and leaves its stacks


class TrainConfig(Config, Generic[ModelT, ObjectiveT]):
    """One stage's run. `trainer.stages.load_train_config` reads the right kind from a file."""

    stage: str  # a name in trainer.stages.STAGES
    out: Path  # the RUN folder
    data: DataConfig
    clip: str | None = None  # a RUN of stage clip, or what `--clip` takes, for text states
    init_from: str | None = None  # RUN[@SAMPLES][:WEIGHTS] or FILE.safetensors; None: random
    seed: Seed = 0
    model: ModelT
    objective: ObjectiveT
    optim: OptimConfig = OptimConfig()
    train: LoopConfig
    ema: EmaConfig = EmaConfig()
    guards: GuardConfig = GuardConfig()
    log: LogConfig = LogConfig()


AnyTrainConfig = TrainConfig[Any, Any]
