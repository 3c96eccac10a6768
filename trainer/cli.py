"""The trainer's commands: train, plan, checkpoint, generate, evaluate; torch when needed."""

from __future__ import annotations

import math
import os
import sys
from json import dumps, loads
from pathlib import Path
from typing import Annotated

import typer

from base.command import emit_json
from base.errors import UserError
from base.stop import stop_with_parent
from trainer.checkpoint_cli import app as checkpoint_app
from trainer.evaluation.cli import EPILOG, evaluate
from trainer.sampling.cli import app as generate_app

app = typer.Typer(
    name="trainer",
    help="Train the stages of DALL·E 2, look after their checkpoints, make pictures, measure them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(generate_app, name="generate")
app.command(epilog=EPILOG)(evaluate)

Override = Annotated[
    list[str] | None, typer.Option("--set", help="A value over the file's: a.b=c.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


@app.command(
    epilog="Examples: `unclip train configs/tiny/prior.yaml` · "
    "`unclip train prior.yaml --set optim.lr=1e-4 --set train.batch=64` · "
    "`torchrun --nproc-per-node 8 -m trainer train prior.yaml --set train.zero_stage=2`"
)
def train(
    config: Annotated[Path, typer.Argument(help="The run's YAML file.")],
    override: Override = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_OR_FILE[@SAMPLES][:WEIGHTS]",
            help="Weights that a new run begins with: another RUN's, or a safetensors file's.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train one stage; run it again to go on from the last checkpoint.

    Alone, under torchrun or under srun. Ctrl-C, SIGTERM, SIGUSR2 and SIGHUP save first.
    """
    from trainer.engine.processes import group_scope
    from trainer.loop import train as run_training
    from trainer.stages import load_train_config

    overrides = [*(override or ())]
    if init_from is not None:
        overrides.append(f"init_from={dumps(init_from)}")
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun dies of SIGUSR2, and would leave us behind
        stop_with_parent()
    with group_scope():
        result = run_training(load_train_config(config, overrides))
    if json:
        emit_json(result)
    else:
        before = ", finished before" if result.resumed_from == result.samples else ""
        typer.echo(f"{result.out}: {result.samples} samples in {result.steps} steps{before}")


@app.command(hidden=True)
def check_configs() -> None:
    """Read training configs as `train` does, for whoever launches it later.

    Standard input has a JSON object: names, and the words that `train` is to be given.
    """
    from trainer.stages import load_train_config

    for name, (config, *words) in loads(sys.stdin.read()).items():
        try:
            load_train_config(config, words[1::2])  # each after a --set
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


@app.command(
    epilog="Examples: `unclip plan configs/tiny/prior.yaml --gpus 8` · "
    "`unclip plan prior.yaml --gpus 64 --memory 40GB --peak 312 --mfu 0.35 --json`"
)
def plan(
    config: Annotated[Path, typer.Argument(help="The run's YAML file.")],
    gpus: Annotated[int, typer.Option(min=1, help="Processes, one per GPU.")] = 1,
    memory: Annotated[str, typer.Option(help="Of each GPU: 80GB, 24GiB.")] = "80GB",
    mfu: Annotated[float, typer.Option(help="Share of the peak that is reached.")] = 0.4,
    peak: Annotated[
        float | None, typer.Option(help="TFLOP/s of each GPU; without it an H100's.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="`cuda` or `cpu`: they attend in other ways.")
    ] = "cuda",
    override: Override = None,
    json: Json = False,
) -> None:
    """Memory, FLOPs and days of a run, and whether it fits; reads no data, allocates nothing.

    Bytes of a GPU are told for the one-process engine and for each ZeRO stage.
    """
    from trainer.planning.plan import Hardware, make_plan
    from trainer.planning.show import describe, parse_bytes
    from trainer.stages import load_train_config

    if not 0 < mfu <= 1:
        raise UserError(f"--mfu: got {mfu}, expected a share above 0 and up to 1")
    if peak is not None and not 0 < peak < math.inf:
        raise UserError(f"--peak: got {peak}, expected TFLOP/s above 0")
    if device not in ("cuda", "cpu"):
        raise UserError(f"--device: got {device!r}, expected cuda or cpu")
    hardware = Hardware(gpus, parse_bytes(memory), mfu, peak, "cpu" if device == "cpu" else "cuda")
    found = make_plan(load_train_config(config, override or ()), hardware)
    if json:
        emit_json(found.to_json())
        return
    for line in describe(found):
        typer.echo(line)
