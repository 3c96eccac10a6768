"""The commands of `unclip generate`; what needs torch is imported when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from base.command import emit_json
from base.errors import NothingUsable, UserError

app = typer.Typer(
    help="Make pictures with a trained cascade.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def generate() -> None:
    """Make pictures with a trained cascade."""


@app.command(
    epilog="Examples: `unclip generate text runs/demo 'a red circle on a white background'` · "
    "`unclip generate text runs/demo --file captions.txt --count 4 --seed 7 --out pictures`. "
    "The noise of a picture follows from seed and position, whatever the batch."
)
def text(
    cascade: Annotated[Path, typer.Argument(help="A cascade.yaml, or the folder that holds it.")],
    captions: Annotated[list[str] | None, typer.Argument(help="One or several captions.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A text file with one caption a line; they come last.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    count: Annotated[int, typer.Option(min=1, help="Pictures of each caption.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Every seed gives other pictures.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn together.")] = 16,
    weights: Annotated[
        str | None, typer.Option(help="`raw`, `ema`, `ema_0.050` …; without it, the cascade's.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Pictures of captions: 000000.png and so on, and captions.json that says what they show.

    Stopped in the middle, the same command goes on where it was.
    """
    wanted = [*(captions or []), *(_read_captions(file) if file else [])]
    wanted = [caption.strip() for caption in wanted if caption.strip()]
    if not wanted:
        raise UserError("no caption: give one or more, or --file with one a line")
    from trainer.sampling.pictures import draw_captions

    repeated = [caption for caption in wanted for _ in range(count)]
    paths = draw_captions(cascade, repeated, seed, out, batch, weights)
    if json:
        pairs = zip(paths, repeated, strict=True)
        shown = [{"file": str(path), "caption": caption} for path, caption in pairs]
        emit_json({"out": str(out), "seed": seed, "pictures": shown})
    else:
        typer.echo(f"{out}: {len(paths)} pictures of {len(wanted)} captions")


def _read_captions(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text") from error
    if not any(line.strip() for line in lines):
        raise NothingUsable(f"{file}: no caption in it")
    return lines
