"""Commands that bring weights of other projects in and ours out; torch comes when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from base.command import emit_json
from base.errors import UserError

IMPORT_EXAMPLES = (
    "Examples: `unclip checkpoint import karlo-v1-alpha --out runs/karlo` · "
    "`unclip checkpoint import karlo-v1-alpha --clip clip-vit-large-patch14 --out runs/karlo`"
)


def import_checkpoint(
    source: Annotated[
        Path,
        typer.Argument(help="A diffusers UnCLIP folder, or a folder of Karlo's original files."),
    ],
    out: Annotated[Path, typer.Option(help="The folder for the RUNs and cascade.yaml.")],
    clip: Annotated[
        str | None,
        typer.Option(
            help="A CLIP with both halves, where SOURCE lacks one: a folder of transformers' "
            "CLIPModel, of open_clip's, or a RUN."
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Make RUNs and a cascade.yaml of Karlo, or of any unCLIP pipeline of diffusers.

    Reads tensors alone. Stopped in the middle, the same command goes on where it was.
    """
    from trainer.interop.importing import import_cascade

    made = import_cascade(source, out, clip)
    if json:
        emit_json({"cascade": str(made.cascade), "parameters": made.runs, "clip": made.clip})
        return
    for name, count in made.runs.items():
        typer.echo(f"{out / name}: {count:,} parameters")
    typer.echo(f"{made.cascade}: sample it with `unclip generate text {out} 'a caption'`")


def export_diffusers(run: Path, out: Path, weights: str | None, at: int | None, json: bool) -> None:
    """Write a cascade, or a RUN, as folders of diffusers' classes."""
    from trainer.interop.exporting import export_cascade, export_run

    if run.is_file() or (run / "cascade.yaml").is_file():
        if at is not None:
            raise UserError("--at: is for a RUN; a cascade.yaml says `samples` of each part")
        parts = export_cascade(run, out, weights)
    else:
        parts = export_run(run, out, weights or "ema", at)
    if json:
        emit_json({"out": str(out), "parts": parts})
    else:
        typer.echo(f"{out}: {', '.join(parts)}")
